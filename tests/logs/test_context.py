"""The ids of a request: what is taken from its headers, and that what is malformed counts as absent."""

from __future__ import annotations

import re
import threading
from pathlib import Path

import pytest

from pkg import _core
from pkg.logs import context
from tests.support.client import get
from tests.support.processes import running

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


@pytest.mark.parametrize(
    ("value", "flags"),
    [
        (f"00-{TRACE}-{SPAN}-01", 1),
        (f"00-{TRACE}-{SPAN}-00", 0),
        (f"00-{TRACE}-{SPAN}-ff", 255),
        (f" 00-{TRACE}-{SPAN}-01\t", 1),
        (f"01-{TRACE}-{SPAN}-01", 1),
        (f"cc-{TRACE}-{SPAN}-01-what-the-future-will-be-like", 1),
        (f"cc-{TRACE}-{SPAN}-01-", 1),
    ],
)
def test_traceparent(value: str, flags: int) -> None:
    assert context.parse_traceparent(value) == (TRACE, SPAN, flags)


@pytest.mark.parametrize(
    "value",
    [
        None,
        "",
        "00",
        f"ff-{TRACE}-{SPAN}-01",
        f"00-{'0' * 32}-{SPAN}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"00-{TRACE.upper()}-{SPAN}-01",
        f"00-{TRACE}-{SPAN.upper()}-01",
        f"0-{TRACE}-{SPAN}-01",
        f"000-{TRACE}-{SPAN}-01",
        f"00-{TRACE[1:]}-{SPAN}-01",
        f"00-{TRACE}0-{SPAN}-01",
        f"00-{TRACE}-{SPAN}0-01",
        f"00-{TRACE}-{SPAN}-1",
        f"00-{TRACE}-{SPAN}-001",
        f"00-{TRACE}-{SPAN}-0g",
        f"00-{TRACE}-{SPAN}",
        f"00-{TRACE}-{SPAN}-01-extra",
        f"00-{TRACE}-{SPAN}-01-",
        f"cc-{TRACE}-{SPAN}-01.extra",
        f"00_{TRACE}_{SPAN}_01",
        f"00-{TRACE}-{SPAN}-01\n",
        f"00-{TRACE}-{SPAN}-01, 00-{TRACE}-{SPAN}-01",
        f"00-{TRACE[:-1]}\u0661-{SPAN}-01",
    ],
)
def test_malformed_traceparent_counts_as_absent(value: str | None) -> None:
    assert context.parse_traceparent(value) is None


AMZN = f"1-{TRACE[:8]}-{TRACE[8:]}"


@pytest.mark.parametrize(
    ("value", "span", "flags"),
    [
        (f"Root={AMZN}", "", 0),
        (f"Root={AMZN};Parent={SPAN};Sampled=1", SPAN, 1),
        (f"Self=1-67891234-12456789abcdef012345678;Root={AMZN};Lineage=a:b;Parent={SPAN};Sampled=0", SPAN, 0),
        (f"Root={AMZN};CalledFrom=app", "", 0),
    ],
)
def test_trace_of_an_aws_load_balancer(value: str, span: str, flags: int) -> None:
    assert context.parse_amzn_trace(value) == (TRACE, span, flags)


@pytest.mark.parametrize(
    ("value", "span", "flags"),
    [
        (TRACE, "", 0),
        (f"{TRACE}/1;o=1", "0000000000000001", 1),
        (f"{TRACE}/18446744073709551615", "f" * 16, 0),
        (f"{TRACE}/18446744073709551616;o=0", "", 0),
    ],
)
def test_trace_of_a_google_load_balancer(value: str, span: str, flags: int) -> None:
    assert context.parse_cloud_trace(value) == (TRACE, span, flags)


@pytest.mark.parametrize(
    "value", [None, "", "Root=", f"Root={AMZN}0", f"root={AMZN}", "0" * 32, f"{TRACE}/x", "x" * 9999]
)
def test_malformed_traces_count_as_absent(value: str | None) -> None:
    assert context.parse_amzn_trace(value) is None
    assert context.parse_cloud_trace(value) is None


def test_traceparent_comes_first() -> None:
    headers = {
        b"traceparent": "malformed",
        b"x-cloud-trace-context": f"{TRACE}/1",
        b"x-amzn-trace-id": "Root=1-00000000-000000000000000000000001",
    }
    assert context.trace_parent(headers.get) == (TRACE, "0000000000000001", 0)
    headers[b"traceparent"] = f"00-{TRACE}-{SPAN}-01"
    assert context.trace_parent(headers.get) == (TRACE, SPAN, 1)
    assert context.trace_parent({}.get) is None


@pytest.mark.parametrize("value", ["a", "A-1.~!", "x" * 128])
def test_request_id(value: str) -> None:
    assert context.parse_request_id(value) == value


@pytest.mark.parametrize("value", [None, "", "x" * 129, "a b", "a\tb", "a\n", "\x7f", "\xe9", "\u4f60"])
def test_request_id_that_is_not_taken(value: str | None) -> None:
    assert context.parse_request_id(value) is None


def test_new_request_ids_are_unique_over_threads() -> None:
    found: list[str] = []
    threads = [
        threading.Thread(target=lambda: found.extend(_core.new_request_id() for _ in range(1000))) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(found)) == 8000
    assert all(re.fullmatch(r"[0-9a-f]{32}", value) and context.parse_request_id(value) for value in found)


@pytest.mark.parametrize(
    "source",
    [
        "def app(environ, start_response):\n    start_response('200 OK', [])\n    return [pkg.request_id().encode()]\n",
        "async def app(scope, receive, send):\n"
        "    await send({'type': 'http.response.start', 'status': 200, 'headers': []})\n"
        "    await send({'type': 'http.response.body', 'body': pkg.request_id().encode()})\n",
    ],
    ids=["wsgi", "asgi"],
)
def test_an_application_knows_the_id(tmp_path: Path, source: str) -> None:
    with running(tmp_path, f"import pkg\nassert pkg.request_id() == ''\n{source}", PKG_ADMIN="off") as process:
        for headers in ("", "X-Request-Id: seven\r\n"):
            answer = get(process.address, "/", headers)
            assert answer.body.decode() == answer.header("x-request-id")
        assert answer.body == b"seven"
