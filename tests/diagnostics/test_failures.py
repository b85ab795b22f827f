"""Exceptions that were logged, counted by kind and by the application's line."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator

import pytest

from pkg.diagnostics import failures
from pkg.diagnostics.failures import Failures


@pytest.fixture
def log() -> Iterator[tuple[logging.Logger, Failures]]:
    found = Failures()

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            found.note(record)

    logger, handler = logging.Logger("of a test"), Handler()
    logger.addHandler(handler)
    yield logger, found


def fail(logger: logging.Logger, error: type[Exception] = KeyError, level: int = logging.ERROR) -> None:
    try:
        raise error("a secret")
    except error:
        logger.log(level, "it failed", exc_info=True)


def test_they_are_counted_by_kind_and_place(log: tuple[logging.Logger, Failures]) -> None:
    logger, found = log
    fail(logger, OSError)
    for _ in range(3):
        fail(logger)
    fail(logger, level=logging.WARNING)
    logger.error("no exception")
    most, other = found.lately()
    assert (most.kind, most.times, other.kind, other.times) == ("KeyError", 3, "OSError", 1)
    assert re.fullmatch(r"\S*test_failures\.py:\d+ in fail", most.at)
    assert "secret" not in str(found.lately())


def test_only_the_last_minute_counts(log: tuple[logging.Logger, Failures], monkeypatch: pytest.MonkeyPatch) -> None:
    logger, found = log
    fail(logger)
    later = failures.time.monotonic() + 61
    monkeypatch.setattr(failures.time, "monotonic", lambda: later)
    assert found.lately() == []
    fail(logger)
    assert [failure.times for failure in found.lately()] == [1]


def test_kinds_and_times_are_bounded(log: tuple[logging.Logger, Failures], monkeypatch: pytest.MonkeyPatch) -> None:
    logger, found = log
    monkeypatch.setattr(failures, "MOST_KINDS", 3)
    monkeypatch.setattr(failures, "MOST_TIMES", 5)
    for number in range(10):
        fail(logger, type(f"Error{number}", (Exception,), {}))
    assert {failure.kind for failure in found.lately()} == {"Error7", "Error8", "Error9"}
    for _ in range(9):
        fail(logger)
    assert found.lately()[0].times == 5
