"""deploy/overlays/prometheus without a cluster: schemas, and a real Prometheus that scrapes a service as it says."""

from __future__ import annotations

import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.image.conftest import needed
from tests.image.test_deploy import container, pod, render
from tests.prometheus.drills import ROOT, RULES
from tests.support.client import wait_for
from tests.support.pages import files_of
from tests.support.ports import free_port
from tests.support.processes import ask, running
from tests.support.prometheus import Prometheus

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
APPLICATION = "def app(environ, start_response):\n    start_response('200 OK', [])\n    return [b'ok']\n"


@pytest.fixture(scope="module")
def manifests() -> dict[str, Any]:
    return render("overlays/prometheus")


def test_manifests_fit_the_api_s_schemas(manifests: dict[str, Any]) -> None:
    kubernetes_validate = needed("kubernetes_validate")
    for kind, manifest in manifests.items():
        if kind != "PodMonitor":  # a kind of the Prometheus Operator
            kubernetes_validate.validate(manifest, "1.34", strict=True)


def test_the_parts_fit(manifests: dict[str, Any]) -> None:
    only = container(manifests)
    ports = {entry["name"]: entry["containerPort"] for entry in only["ports"]}
    environ = {entry["name"]: entry["value"] for entry in only["env"]}
    assert environ["PKG_ADMIN"] == f"0.0.0.0:{ports['admin']}"
    (mount,) = (mount for mount in only["volumeMounts"] if mount["name"] == "admin")
    endpoint = manifests["PodMonitor"]["spec"]["podMetricsEndpoints"][0]
    token = endpoint["authorization"]["credentials"]
    assert environ["PKG_ADMIN_TOKEN_FILE"] == f"{mount['mountPath']}/{token['key']}" and mount["readOnly"]
    volumes = {volume["name"]: volume for volume in pod(manifests)["volumes"]}
    assert volumes["admin"]["secret"]["secretName"] == token["name"]
    assert endpoint["port"] == "admin"
    selector = manifests["PodMonitor"]["spec"]["selector"]["matchLabels"]
    assert selector.items() <= manifests["Deployment"]["spec"]["template"]["metadata"]["labels"].items()
    everybody, prometheus = manifests["NetworkPolicy"]["spec"]["ingress"]
    assert everybody["ports"] == [{"port": "http", "protocol": "TCP"}] and "from" not in everybody
    assert prometheus["ports"] == [{"port": "admin", "protocol": "TCP"}] and len(prometheus["from"]) == 1


@pytest.mark.skipif(shutil.which("prometheus") is None, reason="prometheus is not installed (Debian: prometheus)")
def test_it_is_scraped_with_the_token_only(manifests: dict[str, Any], tmp_path: Path) -> None:
    """Prometheus asks for OpenMetrics.  It takes the alert rules and the exemplar as well, the latter once."""
    token, port = secrets.token_hex(32), free_port()
    target = [("127.0.0.1", port)]
    (tmp_path / "token").write_text(f"{token}\n")
    environ = {entry["name"]: entry["value"] for entry in container(manifests)["env"]}
    del environ["DATABASE_URL_FILE"]
    environ |= {"PKG_ADMIN": f"0.0.0.0:{port}", "PKG_ADMIN_TOKEN_FILE": str(tmp_path / "token")}
    for name in ("with", "without"):
        (tmp_path / name).mkdir()
    with (
        running(tmp_path, APPLICATION, **environ, PKG_DRAIN_DELAY="0") as process,
        Prometheus(tmp_path / "with", target, token=token, rules=[RULES], features="exemplar-storage") as allowed,
        Prometheus(tmp_path / "without", target) as refused,
    ):
        ask(process.address, "/", traceparent=f"00-{TRACE}-{1:016x}-01")
        wait_for(lambda: [s["value"][1] for s in allowed.query('pkg_ready{job="pkg"}')] == ["1"], 20)
        wait_for(lambda: any(target["lastError"] for target in refused.targets()), 20)
        assert [target["health"] for target in allowed.targets()] == ["up"]
        assert "401" in refused.targets()[0]["lastError"]
        assert refused.query("pkg_ready") == []
        wait_for(lambda: {rule["health"] for rule in allowed.rules()} == {"ok"}, 20)
        assert [rule["name"] for rule in allowed.rules() if rule["state"] != "inactive"] == []
        (traced,) = wait_for(lambda: allowed.exemplars("http_server_request_duration_seconds_bucket"), 20)
        assert [exemplar["labels"] for exemplar in traced["exemplars"]] == [{"trace_id": TRACE}]
        for query in scaling_queries():
            (series,) = wait_for(lambda query=query: allowed.query(query), 20)
            assert 0 <= float(series["value"][1]) <= 100, query


def scaling_queries() -> Iterator[str]:
    """What KEDA and prometheus-adapter ask, without the labels that only a cluster gives."""
    for trigger in render("overlays/keda")["ScaledObject"]["spec"]["triggers"]:
        query: str = trigger["metadata"]["query"]
        assert query.count(',namespace="pkg"') >= 1
        yield query.replace(',namespace="pkg"', "").replace("[2m]", "[5s]")
    (rule,) = yaml.safe_load(files_of(ROOT / "docs" / "logs-and-metrics.md")["adapter.yaml"])["rules"]
    yield rule["metricsQuery"].replace("<<.GroupBy>>", "instance").replace("<<.LabelMatchers>>", 'job="pkg"')


def test_one_autoscaler_at_a_time(manifests: dict[str, Any]) -> None:
    on_cpu = manifests["HorizontalPodAutoscaler"]["spec"]
    with_keda = render("overlays/keda")
    assert "HorizontalPodAutoscaler" not in with_keda
    spec = with_keda["ScaledObject"]["spec"]
    assert spec["scaleTargetRef"] == {"name": with_keda["Deployment"]["metadata"]["name"]}
    assert (spec["minReplicaCount"], spec["maxReplicaCount"]) == (on_cpu["minReplicas"], on_cpu["maxReplicas"])
