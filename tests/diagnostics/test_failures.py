"""Exceptions that were logged, counted by kind and by the application's line."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from pkg.diagnostics import failures
from pkg.diagnostics.failures import Failures
from pkg.logs import sink


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


def test_their_number_is_bounded(log: tuple[logging.Logger, Failures]) -> None:
    logger, found = log
    for _ in range(failures.MOST + 10):
        fail(logger)
    assert [failure.times for failure in found.lately()] == [failures.MOST]


def test_a_place_is_found_where_the_current_folder_has_been_deleted(
    log: tuple[logging.Logger, Failures], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    logger, found = log
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    fail(logger)
    (failure,) = found.lately()
    assert "test_failures.py" in failure.at


def test_a_watcher_that_raises_costs_no_line(capfd: pytest.CaptureFixture[str]) -> None:
    logs = sink.configure(format="json")
    logs.watch(lambda record: 1 / 0)
    logging.getLogger("shop").error("it is written")
    assert logs.close()
    assert "it is written" in capfd.readouterr().out


def test_it_takes_no_lock_that_a_signal_handler_or_a_child_could_wait_for() -> None:
    assert [name for name, value in vars(Failures()).items() if "lock" in type(value).__name__.lower()] == []
