"""The health pages on the admin listener: the front's answers, for probes that reach no other listener."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pkg.admin.health import HealthPages
from pkg.admin.pages import Pages
from pkg.health.checks import Checker
from pkg.health.pages import LIVENESS, READINESS
from tests.support.client import Answer, get, wait_for
from tests.support.ports import free_port
from tests.support.processes import ask, running

TOKEN = "hunter2-and-more"
APPLICATION = """
import pkg

@pkg.check("model")
def model():
    raise RuntimeError("a reason that no prober sees")

@pkg.check("cache", required=False)
def cache():
    raise RuntimeError("a reason that no prober sees")

def app(environ, start_response):
    start_response("200 OK", [])
    return [b"the application"]
"""
TARGETS = (
    "/healthz", "/livez", "/readyz", "/readyz/", "/readyz?verbose", "/readyz?format=json", "/readyz?verbose=1",
    "/readyz?verbose&format=json", "/readyz?format=xml", "/readyz/model", "/readyz/cache",
    "/readyz/startup?format=json", "/healthz/interpreter?verbose",
)  # fmt: skip
ACCEPTS = ("", "application/json", "text/html, application/health+json;q=0.5", "application/json;q=0", "text/plain")
# The listeners send the others themselves, each in its own way.
COMPARED = (
    "content-type",
    "content-length",
    "cache-control",
    "x-content-type-options",
    "retry-after",
    "x-envoy-degraded",
)


def told(answer: Answer) -> tuple[int, bytes, list[str | None]]:
    return answer.status, answer.body, [answer.header(name) for name in COMPARED]


def test_the_same_as_from_the_front(tmp_path: Path) -> None:
    admin = ("127.0.0.1", free_port())
    with running(tmp_path, APPLICATION, PKG_ADMIN=f"127.0.0.1:{admin[1]}", PKG_ADMIN_TOKEN=TOKEN) as service:
        # Nothing changes once both checks have a result.
        wait_for(lambda: get(service.address, "/readyz?format=json").body.count(b'"time"') == 2)
        for target in TARGETS:
            for accept in ACCEPTS:
                headers = f"Accept: {accept}\r\n" if accept else ""
                assert told(get(admin, target, headers)) == told(get(service.address, target, headers)), (
                    target,
                    accept,
                )
        assert get(admin, "/readyz").body == b"startup: in progress"
        assert told(get(admin, "/readyz", method="HEAD")) == told(get(service.address, "/readyz", method="HEAD"))
        assert get(admin, "/readyz", method="POST").status == 405
        # Whoever may read these may read nothing else.
        for target in ("/", "/statusz", "/readyz/nothing", "/healthzz", "/metrics"):
            assert get(admin, target).status == 401, target


def test_paths_that_were_moved(tmp_path: Path) -> None:
    admin = ("127.0.0.1", free_port())
    paths = {"PKG_LIVENESS_PATH": "/alive", "PKG_READINESS_PATH": "/metrics"}
    with running(tmp_path, APPLICATION, PKG_ADMIN=f"127.0.0.1:{admin[1]}", **paths) as service:
        assert told(get(admin, "/alive")) == told(get(service.address, "/alive"))
        assert ask(admin, "/healthz")[0] == 404
        assert get(service.address, "/metrics").body == b"startup: in progress"
        assert "# HELP" in ask(admin, "/metrics")[2]  # the admin listener's own pages stay


def test_own_pages_of_the_admin_listener_are_never_hidden() -> None:
    pages = Pages(None, level=str, set_level=str, drain=str)  # type: ignore[arg-type]
    fake = ((200, b"Content-Type: text/plain\r\n", b"ok"),) * 3
    health = HealthPages(lambda path: fake)
    assert health.answer("GET", "/healthz", "") is not None
    for path in pages._table:
        assert path == "/" or health.answer("GET", path, "") is None


def test_they_expire_like_the_fronts() -> None:
    """If the checks' thread no longer runs, for whatever reason, these pages say so as well."""
    now = [100.0]
    renewed: list[tuple[int, float]] = []
    checker = Checker(
        publish=lambda pages: None,
        renew=lambda slot, seconds: renewed.append((slot, seconds)),
        clock=lambda: now[0],
        liveness_timeout=30.0,
        root=True,
    )
    assert checker.answers("/healthz") is None  # nothing is published yet
    checker.startup_done()
    checker.tick()
    lasting = dict(renewed)
    for path, slot, text in (
        ("/healthz", LIVENESS, b"interpreter: no sign of life"),
        ("/readyz/", READINESS, b"interpreter: no sign of life"),
    ):
        now[0] = 100.0 + lasting[slot] - 0.1
        answers = checker.answers(path)
        assert answers is not None and [answer[0] for answer in answers] == [200, 200, 200]
        now[0] = 100.0 + lasting[slot]
        answers = checker.answers(path)
        assert answers is not None and (answers[0][0], answers[0][2]) == (503, text)
        assert json.loads(answers[2][2])["status"] == "fail"
    assert checker.answers("/") is None and checker.answers("") is None  # the index of the admin listener


@pytest.mark.parametrize("query", ["verbose&" * 30, "&" * 5000, "%zz=%", "format=json&" * 100])
def test_odd_queries(query: str) -> None:
    fake = ((200, b"Content-Type: text/plain\r\n", b"ok"),) * 3
    reply = HealthPages(lambda path: fake if path == "/healthz" else None).answer("GET", f"/healthz?{query}", "")
    assert reply is not None and reply.body == b"ok"
