"""The health pages: renders the states of the checks to the bytes that probers get.

It makes no decision and keeps no state.  Reasons never get into a page, only into the admin listener's report.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import datetime
from typing import NamedTuple

from pkg.health.report import CheckRuns, CheckState

__all__ = ["LIVENESS", "READINESS", "Answers", "HealthPage", "Result", "State", "pages_of", "verdict_of"]

LIVENESS, READINESS = 0, 1  # expiry slots
MAX_BODY_SIZE = 1024  # probers search for their text in the first KiB only (GCP, Envoy)

Answer = tuple[int, bytes, bytes]
Answers = tuple[Answer, Answer, Answer]
HealthPage = tuple[str, int, Answers, Answers, Answers | None]


class Result(NamedTuple):
    """The result of a check; `reason` is for the log and the admin listener, never for a prober."""

    status: str  # ok, degraded, failed
    reason: str = ""


class State(NamedTuple):
    """The current state of one check, built in or registered."""

    name: str
    result: Result
    required: bool
    changed: datetime | None

    @property
    def verdict(self) -> str:
        """pass, warn or fail (draft-inadarei-api-health-check-06, 3.1)."""
        if self.result.status == "ok":
            return "pass"
        return "warn" if self.result.status == "degraded" or not self.required else "fail"

    def report(self, runs: CheckRuns | None = None) -> CheckState:
        changed = self.changed.isoformat() if self.changed else None
        return CheckState(self.name, self.result.status, self.result.reason, self.required, changed, runs)


def verdict_of(states: Sequence[State]) -> str:
    """The overall verdict: pass, warn or fail."""
    verdicts = {state.verdict for state in states}
    return "fail" if "fail" in verdicts else "warn" if "warn" in verdicts else "pass"


# The only reasons that a prober may see.
_PUBLIC = {"startup": "in progress", "shutdown": "draining"}


def pages_of(path: str, name: str, slot: int, states: Sequence[State]) -> list[HealthPage]:
    """The page of all states, and below it one page for each state."""
    draining = None
    if slot == READINESS:
        draining = _answers(name, [State("shutdown", Result("failed"), True, None)])
    expired = _answers(name, [State("interpreter", Result("failed"), True, None)], text="interpreter: no sign of life")
    pages: list[HealthPage] = [(path, slot, _answers(name, states), expired, draining)]
    for state in states:
        below = draining if state.name == "shutdown" else None
        pages.append((f"{path}/{state.name}", slot, _answers(state.name, [state]), expired, below))
    return pages


def _answers(name: str, states: Sequence[State], text: str = "") -> Answers:
    verdict = verdict_of(states)
    failed = next((s for s in states if s.verdict == "fail"), None)
    plain = "ok" if failed is None else text or f"{failed.name}: {_PUBLIC.get(failed.name, 'failed')}"
    return (
        _answer(verdict, "text/plain; charset=utf-8", plain),
        _answer(verdict, "text/plain; charset=utf-8", _verbose(name, states, verdict)),
        _answer(verdict, "application/health+json", _json(states, verdict)),
    )


def _verbose(name: str, states: Sequence[State], verdict: str) -> str:
    """The lines of the Kubernetes API server (apiserver pkg/server/healthz); failures first if not all of them fit."""
    lines = {
        "pass": "[+]{} ok",
        "warn": "[~]{} degraded: reason withheld",
        "fail": "[-]{} failed: reason withheld",
    }
    last = f"{name} check {'failed' if verdict == 'fail' else 'passed'}\n"
    shown = [lines[s.verdict].format(s.name) for s in states]
    if sum(map(len, shown)) + len(shown) + len(last) > MAX_BODY_SIZE:
        shown.sort(key=lambda line: line[1] == "+")
        room = MAX_BODY_SIZE - len(last) - 16
        while sum(map(len, shown)) + len(shown) > room:
            shown.pop()
        shown.append(f"({len(states) - len(shown)} more)")
    return "\n".join([*shown, last])


def _json(states: Sequence[State], verdict: str) -> str:
    entries = {
        s.name: [{"status": s.verdict} | ({"time": s.changed.isoformat(timespec="seconds")} if s.changed else {})]
        for s in sorted(states, key=lambda s: s.verdict == "pass")
    }
    while len(text := json.dumps({"status": verdict, "checks": entries})) > MAX_BODY_SIZE:
        entries.popitem()
    return text


def _answer(verdict: str, media_type: str, text: str) -> Answer:
    body = text.encode()
    headers = [
        f"Content-Type: {media_type}",
        f"Content-Length: {len(body)}",
        "Cache-Control: no-store",
        "X-Content-Type-Options: nosniff",
    ]
    if verdict == "fail":
        headers.append("Retry-After: 1")
    if verdict == "warn":
        headers.append("x-envoy-degraded: true")
    return 503 if verdict == "fail" else 200, "".join(f"{h}\r\n" for h in headers).encode(), body
