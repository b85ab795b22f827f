"""deploy/overlays/tls without a cluster: schemas, the restricted profile, and that nginx and the service fit.

That the configuration serves is shown by docs/deploying.md, which is followed with the real nginx.
"""

from __future__ import annotations

from typing import Any

import pytest

from tests.image.conftest import needed
from tests.image.test_deploy import ROOT, container, pod, render, settings_of
from tests.support.pages import files_of

NGINX = ROOT / "deploy/overlays/tls/nginx.conf"


@pytest.fixture(scope="module")
def manifests() -> dict[str, Any]:
    return render("overlays/tls")


def test_manifests_fit_the_api_s_schemas(manifests: dict[str, Any]) -> None:
    kubernetes_validate = needed("kubernetes_validate")
    for manifest in manifests.values():
        kubernetes_validate.validate(manifest, "1.34", strict=True)


def test_the_page_shows_the_file() -> None:
    assert files_of(ROOT / "docs/deploying.md")["nginx.conf"] == NGINX.read_text()


def test_the_sidecar_keeps_to_the_restricted_profile(manifests: dict[str, Any]) -> None:
    (sidecar,) = pod(manifests)["initContainers"]
    assert sidecar["restartPolicy"] == "Always"  # or the service would wait for its end
    assert sidecar["securityContext"]["runAsUser"] > 0
    assert sidecar["securityContext"]["allowPrivilegeEscalation"] is False
    assert sidecar["securityContext"]["readOnlyRootFilesystem"] is True
    assert sidecar["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    assert all(mount.get("readOnly") or mount["mountPath"] == "/tmp" for mount in sidecar["volumeMounts"])
    assert sidecar["command"][:5] == ["nginx", "-e", "stderr", "-p", "/tmp"]  # where it may write


def test_nginx_and_the_service_fit(manifests: dict[str, Any]) -> None:
    (sidecar,), only = pod(manifests)["initContainers"], container(manifests)
    text = NGINX.read_text()
    ((port, https),) = ((entry["containerPort"], entry["name"]) for entry in sidecar["ports"])
    assert f"listen {port} ssl;" in text
    assert f"server 127.0.0.1:{only['ports'][0]['containerPort']};" in text
    assert [entry["targetPort"] for entry in manifests["Service"]["spec"]["ports"]] == [https]
    (rule,) = manifests["NetworkPolicy"]["spec"]["ingress"]
    assert rule["ports"] == [{"port": https, "protocol": "TCP"}]
    assert settings_of(manifests).trusted_proxies == "127.0.0.1/32"
    volumes = {volume["name"]: volume for volume in pod(manifests)["volumes"]}
    config, secret = (source for source in volumes["tls"]["projected"]["sources"])
    assert manifests["ConfigMap"]["metadata"]["name"] == config["configMap"]["name"]
    assert manifests["ConfigMap"]["data"]["nginx.conf"] == text
    for item in secret["secret"]["items"]:
        assert f" {item['path']};" in text
