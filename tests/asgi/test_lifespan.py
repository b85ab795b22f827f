"""The lifespan of an ASGI application, by itself; that it belongs to the service's is tested in test_service.py."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import pytest

from pkg.asgi.lifespan import Lifespan
from pkg.errors import StartupError
from tests.support.servers import loop_factory


def application(startup: str = "complete", shutdown: str = "complete", heard: list[Any] | None = None) -> Any:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        assert scope["type"] == "lifespan" and scope["asgi"] == {"version": "3.0", "spec_version": "2.0"}
        scope["state"]["pool"] = "open"
        for kind, answer in (("startup", startup), ("shutdown", shutdown)):
            message = await receive()
            assert message == {"type": f"lifespan.{kind}"}
            if heard is not None:
                heard.append(kind)
            if answer == "raise":
                raise OSError("no such host")
            await send({"type": f"lifespan.{kind}.{answer}", "message": "no database"})

    return app


def run(app: Any, mode: str = "auto") -> dict[str, Any]:
    async def main() -> dict[str, Any]:
        lifespan = Lifespan(app, mode)
        await lifespan.startup()
        await lifespan.shutdown()
        return lifespan.state

    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        return runner.run(asyncio.wait_for(main(), 10))


@pytest.mark.parametrize("mode", ["auto", "on"])
def test_an_application_is_told_of_start_and_end(mode: str) -> None:
    heard: list[Any] = []
    assert run(application(heard=heard), mode) == {"pool": "open"}
    assert heard == ["startup", "shutdown"]


def test_off_calls_nothing() -> None:
    heard: list[Any] = []
    assert run(application(heard=heard), "off") == {}
    assert heard == []


@pytest.mark.parametrize("mode", ["auto", "on"])
def test_a_failed_startup_is_the_end(mode: str) -> None:
    with pytest.raises(StartupError, match="the application's startup failed: no database"):
        run(application(startup="failed"), mode)


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        ("no database", "no database"),
        ("Traceback (most recent call last):\n ...\nOSError: no", "OSError: no such host"),
    ],
)
def test_a_stack_for_a_message_is_no_reason(message: str, reason: str) -> None:
    """Starlette's is one, and it raises what it tells of."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "lifespan.startup.failed", "message": message})
        raise OSError("no such host")

    with pytest.raises(StartupError) as caught:
        run(app)
    assert str(caught.value) == f"the application's startup failed: {reason}"


async def has_none(scope: Any, receive: Any, send: Any) -> None:
    """As Django does it."""
    if scope["type"] != "http":
        raise ValueError(f"cannot handle {scope['type']}")


async def returns_at_once(scope: Any, receive: Any, send: Any) -> None:
    pass


@pytest.mark.parametrize("app", [has_none, returns_at_once])
def test_an_application_may_have_none(app: Any, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    run(app)
    assert [(r.levelname, r.getMessage()) for r in caplog.records if r.name == "pkg.asgi"] == [
        ("INFO", "the application has no lifespan")
    ]
    with pytest.raises(StartupError, match="the application has no lifespan"):
        run(app, "on")


def test_an_exception_in_the_startup_is_told_with_its_place(caplog: pytest.LogCaptureFixture) -> None:
    run(application(startup="raise"))
    (record,) = (r for r in caplog.records if r.name == "pkg.asgi")
    assert record.levelname == "WARNING" and record.exc_info is not None
    with pytest.raises(StartupError, match="OSError: no such host"):
        run(application(startup="raise"), "on")


@pytest.mark.parametrize(("how", "text"), [("failed", "shutdown failed: no database"), ("raise", "shutdown raised")])
def test_a_failed_shutdown_is_logged(how: str, text: str, caplog: pytest.LogCaptureFixture) -> None:
    run(application(shutdown=how))
    assert any(text in r.getMessage() for r in caplog.records)


def test_messages_out_of_order_raise() -> None:
    errors: list[str] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        for kind in ("lifespan.shutdown.complete", "http.response.start", None):
            with pytest.raises(RuntimeError) as caught:
                await send({"type": kind})
            errors.append(str(caught.value))
        await send({"type": "lifespan.startup.complete"})
        with pytest.raises(RuntimeError):
            await send({"type": "lifespan.startup.complete"})

    run(app)
    assert len(errors) == 3
