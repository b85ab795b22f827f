"""The check engine on a clock of its own: what counts, what is published, what is withheld."""

from __future__ import annotations

import json
import logging
import threading
import time
from typing import Any
from unittest.mock import Mock

import pytest

from pkg.health.checks import MAX_CHECKS, Check, Checker, Degraded
from pkg.health.pages import MAX_BODY_SIZE
from tests.support.client import wait_for

TEXT, VERBOSE, JSON = range(3)


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


class Front:
    """Keeps what was published, as the front would."""

    def __init__(self) -> None:
        self.tables: list[Any] = []
        self.renewed: list[tuple[int, float]] = []

    def publish(self, pages: Any) -> None:
        self.tables.append(pages)

    def renew(self, slot: int, seconds: float) -> None:
        self.renewed.append((slot, seconds))

    def answer(self, path: str, form: int = TEXT, which: str = "fresh") -> tuple[int, dict[str, str], str]:
        page = next(p for p in self.tables[-1] if p[0] == path)
        status, headers, body = page[{"fresh": 2, "expired": 3, "draining": 4}[which]][form]
        assert headers.endswith(b"\r\n")
        fields = dict(line.split(": ", 1) for line in headers.decode().splitlines())
        assert int(fields["Content-Length"]) == len(body)
        return status, fields, body.decode()

    def __contains__(self, path: str) -> bool:
        return any(p[0] == path for p in self.tables[-1])


class Bench:
    """A checker whose clock and probes a test turns by hand."""

    def __init__(self, **options: Any) -> None:
        self.clock, self.front = Clock(), Front()
        self.checker = Checker(publish=self.front.publish, renew=self.front.renew, clock=self.clock, **options)
        self.checker.tick()

    def add(self, name: str = "database", **options: Any) -> Check:
        self.outcome: Any = None
        check = Check(name, self._probe, **options)
        self.checker.add(check)
        self.checker.refresh()
        return check

    def _probe(self) -> Any:
        if isinstance(self.outcome, BaseException):
            raise self.outcome
        return self.outcome

    def run(self, check: Check, outcome: Any = None, after: float = 1.0) -> str:
        self.clock.now += after
        self.outcome = outcome
        self.checker.run_once(check)
        return check.status


FAIL = RuntimeError("password=secret at 10.0.0.1")


def test_answers_while_starting_and_ready() -> None:
    bench = Bench()
    assert bench.front.answer("/healthz")[::2] == (200, "ok")
    assert bench.front.answer("/livez")[::2] == (200, "ok")
    assert bench.front.answer("/readyz")[::2] == (503, "startup: in progress")
    assert "/" not in bench.front
    bench.checker.startup_done()
    bench.checker.refresh()
    status, headers, body = bench.front.answer("/readyz")
    assert (status, body) == (200, "ok")
    assert headers == {
        "Content-Type": "text/plain; charset=utf-8",
        "Content-Length": "2",
        "Cache-Control": "no-store",
        "X-Content-Type-Options": "nosniff",
    }


def test_root_answers_like_readyz() -> None:
    bench = Bench(root=True)
    assert bench.front.answer("/") == bench.front.answer("/readyz")
    bench.checker.startup_done()
    bench.checker.refresh()
    assert bench.front.answer("/")[::2] == (200, "ok")
    assert bench.front.answer("/", which="draining")[0] == 503


# G good, D degraded, B bad; the status after each
@pytest.mark.parametrize(
    ("outcomes", "statuses"),
    [
        ("G", ["ok"]),
        ("B", ["failed"]),  # unknown did not pass before either
        ("GB", ["ok", "ok"]),
        ("GBB", ["ok", "ok", "failed"]),
        ("GBGB", ["ok", "ok", "ok", "ok"]),
        ("GBBG", ["ok", "ok", "failed", "failed"]),
        ("GBBGG", ["ok", "ok", "failed", "failed", "ok"]),
        ("GBBGBG", ["ok", "ok", "failed", "failed", "failed", "failed"]),
        ("BGG", ["failed", "failed", "ok"]),
        ("GDG", ["ok", "degraded", "ok"]),
        ("DBB", ["degraded", "degraded", "failed"]),
        ("BDD", ["failed", "failed", "degraded"]),
    ],
)
def test_damping(outcomes: str, statuses: list[str]) -> None:
    bench = Bench()
    check = bench.add()
    assert check.status == "pending"
    meaning = {"G": None, "D": Degraded("slow"), "B": FAIL}
    assert [bench.run(check, meaning[o]) for o in outcomes] == statuses


def test_unknown_never_passes() -> None:
    bench = Bench()
    bench.checker.startup_done()
    bench.add()
    assert bench.front.answer("/readyz")[::2] == (503, "startup: in progress")
    assert bench.front.answer("/readyz/database")[::2] == (503, "database: failed")


def test_startup_lasts_until_every_required_check_has_passed_once() -> None:
    bench = Bench()
    check = bench.add()
    bench.checker.startup_done()
    bench.run(check, FAIL)
    assert bench.front.answer("/readyz")[::2] == (503, "startup: in progress")
    bench.run(check)
    bench.run(check)
    assert bench.front.answer("/readyz")[0] == 200
    bench.add("late")
    assert bench.front.answer("/readyz")[::2] == (503, "late: failed")


def test_failing_check_and_what_is_withheld() -> None:
    bench = Bench()
    bench.checker.startup_done()
    check = bench.add()
    bench.run(check)
    assert bench.front.answer("/readyz")[0] == 200
    bench.run(check, FAIL)
    bench.run(check, FAIL)
    status, headers, body = bench.front.answer("/readyz")
    assert (status, body, headers["Retry-After"]) == (503, "database: failed", "1")
    assert bench.front.answer("/readyz", VERBOSE)[2] == (
        "[+]startup ok\n[+]shutdown ok\n[+]application ok\n[-]database failed: reason withheld\nreadyz check failed\n"
    )
    status, headers, body = bench.front.answer("/readyz", JSON)
    assert (status, headers["Content-Type"]) == (503, "application/health+json")
    assert json.loads(body)["status"] == "fail"
    assert json.loads(body)["checks"]["database"][0]["status"] == "fail"
    assert bench.front.answer("/readyz/database")[::2] == (503, "database: failed")
    assert bench.front.answer("/readyz/startup")[::2] == (200, "ok")
    assert bench.front.answer("/healthz")[::2] == (200, "ok")
    for page in bench.front.tables[-1]:
        assert b"secret" not in repr(page).encode()
    assert "secret" in json.dumps(bench.checker.report().document())


def test_optional_check_degrades() -> None:
    bench = Bench()
    bench.checker.startup_done()
    check = bench.add("cache", required=False)
    bench.run(check, FAIL)
    bench.run(check, FAIL)
    status, headers, body = bench.front.answer("/readyz")
    assert (status, body, headers["x-envoy-degraded"]) == (200, "ok", "true")
    assert "[~]cache degraded: reason withheld\nreadyz check passed" in bench.front.answer("/readyz", VERBOSE)[2]
    assert json.loads(bench.front.answer("/readyz", JSON)[2])["status"] == "warn"


def test_a_probe_that_hangs_fails_itself_and_nothing_else() -> None:
    bench = Bench()
    bench.checker.startup_done()
    inside, release = threading.Event(), threading.Event()

    def hang() -> None:
        inside.set()
        release.wait(10)

    check = Check("hanging", hang, interval=2, timeout=1)
    other = bench.add("other")
    bench.checker.add(check)
    bench.run(other)
    check.take(check_result("ok"), bench.clock.now)
    thread = threading.Thread(target=bench.checker.run_once, args=(check,))
    thread.start()
    assert inside.wait(10)
    statuses = []
    for _ in range(6):
        bench.clock.now += 1.01
        bench.checker.tick()
        statuses.append(check.status)
    assert statuses == ["ok", "ok", "failed", "failed", "failed", "failed"]
    assert bench.front.answer("/readyz/other")[0] == 200
    release.set()
    thread.join(10)
    assert check.status == "failed"  # a late answer says nothing
    bench.run(check)
    bench.run(check)
    assert check.status == "ok"


def check_result(status: str) -> Any:
    from pkg.health.checks import Result

    return Result(status)


def test_slow_probe_fails() -> None:
    bench = Bench()

    def slow() -> None:
        bench.clock.now += 1.5

    check = Check("slow", slow, timeout=1)
    bench.checker.add(check)
    bench.checker.run_once(check)
    assert check.status == "failed"
    assert check.reason == "took 1.5 s, longer than 1 s"


def test_stale_results_fail() -> None:
    bench = Bench()
    check = bench.add(interval=2, timeout=1)
    bench.run(check)
    bench.clock.now += 7.0
    bench.checker.tick()
    assert check.status == "ok"
    bench.clock.now += 0.1
    bench.checker.tick()
    assert check.status == "failed"
    assert check.reason.startswith("stale")


@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt(), ValueError("two\nlines")])
def test_probes_that_raise_odd_things(error: BaseException) -> None:
    bench = Bench()
    check = bench.add()
    assert bench.run(check, error) == "failed"
    assert "\n" not in check.reason


class Unspeakable(Exception):
    def __str__(self) -> str:
        raise ValueError("no words")


@pytest.mark.parametrize(
    ("probe", "reason"),
    [
        (lambda: False, "returned False"),
        (Mock(side_effect=Unspeakable), "Unspeakable"),
    ],
)
def test_probes_that_fail_in_their_own_way(probe: Any, reason: str) -> None:
    bench = Bench()
    check = Check("odd", probe)
    bench.checker.add(check)
    bench.checker.run_once(check)
    assert (check.status, check.reason, check.runs) == ("failed", reason, 1)


def test_transitions_are_logged_once_with_reason_and_duration(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "pkg.health")
    bench = Bench()
    check = bench.add()
    for outcome in (None, None, FAIL, FAIL, FAIL, FAIL, None, None, None):
        bench.run(check, outcome)
    assert [r.getMessage() for r in caplog.records] == [
        "readiness check database ok (was pending for 1.0 s)",
        "readiness check database failed: RuntimeError: password=secret at 10.0.0.1 (was ok for 3.0 s)",
        "readiness check database ok (was failed for 4.0 s)",
    ]


def test_what_the_application_says_is_logged_once_too(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "pkg.health")
    bench = Bench()
    for ready, reason in ((True, ""), (False, "loading"), (False, "still loading"), (True, ""), (True, "")):
        bench.clock.now += 2.0
        bench.checker.set_ready(ready, reason)
    assert [r.getMessage() for r in caplog.records] == [
        "the application reports that it is not ready: loading (was ready for 4.0 s)",
        "the application reports that it is ready (was not ready for 4.0 s)",
    ]


def test_published_only_on_change_and_renewed_each_tick() -> None:
    bench = Bench()
    bench.checker.startup_done()
    check = bench.add(interval=2, timeout=1)
    bench.run(check)
    bench.checker.refresh()
    tables = len(bench.front.tables)
    bench.front.renewed.clear()
    for _ in range(3):
        bench.run(check)
        bench.checker.tick()
    assert len(bench.front.tables) == tables
    assert bench.front.renewed == [(0, 30.0), (1, 7.0)] * 3


def test_expired_and_draining_answers() -> None:
    bench = Bench()
    bench.checker.startup_done()
    bench.checker.refresh()
    assert bench.front.answer("/healthz", which="expired")[::2] == (503, "interpreter: no sign of life")
    assert bench.front.answer("/readyz", which="expired")[0] == 503
    assert bench.front.answer("/readyz", which="draining")[::2] == (503, "shutdown: draining")
    healthz = next(p for p in bench.front.tables[-1] if p[0] == "/healthz")
    assert healthz[4] is None  # liveness stays green through a drain


def test_set_ready_and_shutdown() -> None:
    bench = Bench()
    bench.checker.start()
    try:
        bench.checker.startup_done()
        bench.checker.set_ready(False, "loading the model")
        assert bench.front.answer("/readyz")[::2] == (503, "application: failed")
        assert "model" not in bench.front.answer("/readyz", VERBOSE)[2]
        bench.checker.set_ready(True)
        assert bench.front.answer("/readyz")[0] == 200
        bench.checker.drain()
        assert bench.front.answer("/readyz")[::2] == (503, "shutdown: draining")
        assert bench.front.answer("/healthz")[0] == 200
    finally:
        bench.checker.stop()


def test_liveness_fails_for_good_and_says_last_words_first() -> None:
    words: list[str] = []
    bench = Bench(last_words=words.append)
    bench.checker.fail_liveness("cache corrupt")
    bench.checker.fail_liveness("again")
    assert words == ["cache corrupt"]
    assert bench.front.answer("/healthz")[::2] == (503, "application: failed")


def test_stuck_workers() -> None:
    reason: list[str | None] = [None]
    words: list[str] = []
    bench = Bench(stuck=lambda: reason[0], last_words=words.append)
    bench.checker.tick()
    assert bench.front.answer("/healthz")[0] == 200
    reason[0] = "8 workers on their requests for 60 s"
    bench.checker.tick()
    bench.checker.tick()
    assert bench.front.answer("/healthz")[::2] == (503, "workers: failed")
    assert words == ["8 workers on their requests for 60 s"]
    reason[0] = None
    bench.checker.tick()
    assert bench.front.answer("/healthz")[0] == 200


def test_bodies_stay_within_a_kibibyte() -> None:
    bench = Bench()
    bench.checker.startup_done()
    checks = [bench.add(f"check-with-a-rather-long-name-of-its-own-{n}") for n in range(MAX_CHECKS)]
    for check in checks[:-1]:
        bench.run(check)
    bench.checker.refresh()
    for page in bench.front.tables[-1]:
        for answers in page[2:]:
            for _, _, body in answers or ():
                assert len(body) <= MAX_BODY_SIZE
    assert checks[-1].name in bench.front.answer("/readyz", VERBOSE)[2]
    assert bench.front.answer("/readyz", VERBOSE)[2].endswith("more)\nreadyz check failed\n")
    assert checks[-1].name in json.loads(bench.front.answer("/readyz", JSON)[2])["checks"]
    with pytest.raises(ValueError, match="at most 60"):
        bench.add("one-too-many")


@pytest.mark.parametrize(
    "options",
    [
        {"name": "startup"},
        {"name": "Upper"},
        {"name": "a b"},
        {"name": "../x"},
        {"name": ""},
        {"interval": 0},
        {"timeout": 0},
        {"failures": 0},
        {"interval": float("nan")},
    ],
)
def test_checks_that_cannot_be(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="check"):
        Check(**{"name": "x", "probe": lambda: None, **options})


def test_names_are_unique() -> None:
    bench = Bench()
    bench.add("twice")
    with pytest.raises(ValueError, match="already"):
        bench.add("twice")


def test_running_for_real() -> None:
    """Threads, ticks and all: red after two failures, green again, nothing left behind."""
    before = threading.active_count()
    front, broken = Front(), threading.Event()
    checker = Checker(publish=front.publish, renew=front.renew)

    def probe() -> None:
        if broken.is_set():
            raise RuntimeError("broken")

    checker.add(Check("thing", probe, interval=0.05))
    checker.start()
    checker.startup_done()
    try:
        wait_for(lambda: front.answer("/readyz")[0] == 200)
        broken.set()
        wait_for(lambda: front.answer("/readyz")[::2] == (503, "thing: failed"))
        broken.clear()
        wait_for(lambda: front.answer("/readyz")[0] == 200)
    finally:
        checker.stop()
    wait_for(lambda: threading.active_count() == before)


def test_checks_that_hang_do_not_delay_the_end() -> None:
    before = threading.active_count()
    release = threading.Event()
    checker = Checker(publish=lambda pages: None, renew=lambda slot, seconds: None)
    for n in range(20):
        checker.add(Check(f"hanging-{n}", lambda: release.wait(30)))
    checker.start()
    begun = time.monotonic()
    checker.stop()
    assert time.monotonic() - begun < 2.0
    release.set()
    wait_for(lambda: threading.active_count() == before)


def test_a_change_that_could_not_be_published_is_published_later(caplog: pytest.LogCaptureFixture) -> None:
    front, full = Front(), threading.Event()

    def publish(pages: Any) -> None:
        if full.is_set():
            raise MemoryError
        front.publish(pages)

    broken = threading.Event()
    checker = Checker(publish=publish, renew=front.renew)
    check = Check("thing", lambda: not broken.is_set(), interval=0.05)
    checker.add(check)
    checker.start()
    checker.startup_done()
    try:
        wait_for(lambda: front.answer("/readyz")[0] == 200)
        full.set()
        broken.set()
        wait_for(lambda: "MemoryError" in caplog.text)
        full.clear()
        wait_for(lambda: front.answer("/readyz")[::2] == (503, "thing: failed"))
        broken.clear()
        wait_for(lambda: front.answer("/readyz")[0] == 200)
    finally:
        checker.stop()
