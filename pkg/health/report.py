"""What the checks tell the admin pages and the metrics: every state with its reason, which probers do not see."""

from __future__ import annotations

from typing import Any, NamedTuple

__all__ = ["CheckRuns", "CheckState", "HealthReport"]


class CheckRuns(NamedTuple):
    """The runs of a registered check; times in seconds."""

    lasted: float  # since its state has changed
    age: float  # since its last result
    duration: float
    interval: float
    timeout: float
    runs: int


class CheckState(NamedTuple):
    name: str
    status: str  # ok, degraded, failed
    reason: str
    required: bool
    changed: str | None  # ISO 8601
    runs: CheckRuns | None = None  # None: a check that is built in

    def document(self) -> dict[str, Any]:
        document = self._asdict()
        del document["runs"]
        if self.runs is not None:
            runs = self.runs._asdict()
            document |= {"for": runs.pop("lasted")} | runs
        return document


class HealthReport(NamedTuple):
    live: bool
    ready: bool
    liveness: list[CheckState]
    readiness: list[CheckState]

    def document(self) -> dict[str, Any]:
        return {
            "live": self.live,
            "ready": self.ready,
            "liveness": [state.document() for state in self.liveness],
            "readiness": [state.document() for state in self.readiness],
        }
