"""deploy/overlays/gateway and ingress without a cluster: schemas, and that what is in front and the service fit."""

from __future__ import annotations

import ipaddress
from typing import Any

import pytest

from tests.image.conftest import needed
from tests.image.test_deploy import render, settings_of

TEXT, NUMBER = {"type": "string"}, {"type": "integer"}


def exactly(*optional: str, **required: Any) -> dict[str, Any]:
    """A schema of objects with these members and no others."""
    properties = {**dict.fromkeys(optional, TEXT), **required}
    return {"type": "object", "required": [*required], "properties": properties, "additionalProperties": False}


# What the route uses of gateway.networking.k8s.io/v1; the API's own schema is part of no package.
PATH = exactly(type={"enum": ["Exact", "PathPrefix"]}, value={"pattern": "^/"})
RULE = exactly(
    matches={"type": "array", "items": exactly(path=PATH)},
    backendRefs={"type": "array", "items": exactly(name=TEXT, port=NUMBER)},
)
ROUTE = exactly(
    parentRefs={"type": "array", "items": exactly("namespace", "sectionName", name=TEXT)},
    hostnames={"type": "array", "items": TEXT},
    rules={"type": "array", "items": RULE},
)


@pytest.fixture(scope="module", params=["gateway", "ingress"])
def manifests(request: pytest.FixtureRequest) -> dict[str, Any]:
    return render(f"overlays/{request.param}")


def test_manifests_fit_the_api_s_schemas(manifests: dict[str, Any]) -> None:
    kubernetes_validate = needed("kubernetes_validate")
    for kind, manifest in manifests.items():
        if kind == "HTTPRoute":
            assert set(manifest) == {"apiVersion", "kind", "metadata", "spec"}
            needed("jsonschema").validate(manifest["spec"], ROUTE)
        else:
            kubernetes_validate.validate(manifest, "1.34", strict=True)


def test_a_route_leads_to_the_service() -> None:
    for overlay in ("gateway", "ingress"):
        manifests = render(f"overlays/{overlay}")
        service = manifests["Service"]
        (port,) = service["spec"]["ports"]
        if overlay == "gateway":
            (rule,) = manifests["HTTPRoute"]["spec"]["rules"]
            assert rule["backendRefs"] == [{"name": service["metadata"]["name"], "port": port["port"]}]
        else:
            (rule,), (tls,) = manifests["Ingress"]["spec"]["rules"], manifests["Ingress"]["spec"]["tls"]
            (path,) = rule["http"]["paths"]
            backend = {"name": service["metadata"]["name"], "port": {"name": port["name"]}}
            assert path["backend"] == {"service": backend}
            assert tls["hosts"] == [rule["host"]]


def test_who_is_believed_is_who_may_connect(manifests: dict[str, Any]) -> None:
    (rule,) = manifests["NetworkPolicy"]["spec"]["ingress"]
    assert rule["ports"] == [{"port": "http", "protocol": "TCP"}]
    assert rule["from"] == [{"namespaceSelector": {"matchLabels": {"pkg-proxies": "true"}}}]
    trusted = [ipaddress.ip_network(text) for text in settings_of(manifests).trusted_proxies.split(",")]
    assert trusted and all(network.is_private for network in trusted)
