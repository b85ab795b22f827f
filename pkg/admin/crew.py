"""The admin pages of a service with worker processes: one view of all of them.

Process 1 answers for itself, the front and the crew; what only a worker knows is asked over its line.  A worker that
is stuck does not answer, and its row says so; the page is there all the same.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol
from urllib.parse import parse_qsl

from pkg.admin.pages import Pages, form_of
from pkg.admin.reply import Problem, Reply, json_reply, text
from pkg.diagnostics.snapshot import Status

__all__ = ["CrewPages"]

# Pages of which process 1 knows nothing.
OF_WORKERS = ("/debug/threads", "/debug/requests", "/debug/tasks", "/debug/pool", "/debug/profile", "/debug/memory")
# Pages that tell of a worker that does not answer what is seen of it from outside, and the patience with it in seconds.
OF_STUCK, PATIENCE = ("/debug/threads", "/debug/requests"), 1.0


class Crew(Protocol):
    """pkg/supervisors/crew.py"""

    def workers(self) -> Sequence[Any]: ...
    def ask(
        self, workers: Sequence[Any], method: str, target: str, accept: str = "", patience: float = 2.0
    ) -> list[dict[str, Any] | None]: ...
    def look_into(self, worker: Any) -> tuple[list[Any], str]: ...


class Answer(NamedTuple):
    worker: int
    reply: Mapping[str, Any] | None  # None: it has not answered in time


class CrewPages(Pages):
    """`?worker=2` asks one worker, in place of all."""

    def __init__(self, status: Status, crew: Crew, **others: Any) -> None:
        super().__init__(status, **others)
        self._crew = crew

    def answer(self, method: str, target: str, accept: str) -> Reply:
        path, _, query = target.partition("?")
        path = path.rstrip("/") or "/"
        try:
            values = dict(parse_qsl(query, keep_blank_values=True, max_num_fields=20))
        except ValueError:
            raise Problem(400, "too many parameters") from None
        of_one = path == "/debug/log-level" and values.get("worker", "") not in ("", "all")
        if path in OF_WORKERS or of_one:
            form = form_of(values.get("format", ""), accept) if path in OF_STUCK else None
            return self._all_in_one(self._ask(values.get("worker", ""), method, target, accept, form), target)
        reply = super().answer(method, target, accept)
        if path == "/debug/log-level" and method == "POST":
            self._ask("", method, target, accept)
        return reply

    def _ask(self, which: str, method: str, target: str, accept: str, form: str | None = None) -> list[Answer]:
        """`form`: in which a worker that does not answer is looked at from outside."""
        workers = [worker for worker in self._crew.workers() if which in ("", "all", str(worker.place))]
        if not workers:
            raise Problem(404, f"there is no worker {which}" if which else "no worker runs")
        if form is None:
            replies = self._crew.ask(workers, method, target, accept)
        else:
            replies = self._crew.ask(workers, method, target, accept, patience=PATIENCE)
            pairs = zip(workers, replies, strict=True)
            replies = [self._from_outside(worker, form) if reply is None else reply for worker, reply in pairs]
        return [Answer(worker.place, reply) for worker, reply in zip(workers, replies, strict=True)]

    def _from_outside(self, worker: Any, form: str) -> dict[str, Any]:
        requests, stacks = self._crew.look_into(worker)
        if form == "json":
            document = {"requests": [request._asdict() for request in requests], "stacks": stacks}
            return {"media_type": "application/json", "status": 200, "headers": {}, "body": json.dumps(document)}
        lines = [f"worker {worker.place} does not answer; its requests, as process 1 knows them:"]
        lines += [f"  {request.age:.3f} s  {request.method} {request.target}" for request in requests] or ["  none"]
        lines += ["its stacks, as its signal handler wrote them, the innermost call first:", stacks or "  none\n"]
        return {"media_type": "text/plain; charset=utf-8", "status": 200, "headers": {}, "body": "\n".join(lines)}

    @staticmethod
    def _all_in_one(answers: Sequence[Answer], target: str) -> Reply:
        if len(answers) == 1:
            (answer,) = answers
            if answer.reply is None:
                raise Problem(503, f"worker {answer.worker} does not answer; /debug/threads shows its stacks")
            return _reply_of(answer.reply)
        if all(answer.reply is not None and "problem" in answer.reply for answer in answers):
            assert answers[0].reply is not None
            return _reply_of(answers[0].reply)
        if target.startswith("/debug/profile"):
            return _profiles(answers)
        if all(reply is None or reply.get("media_type") == "application/json" for _, reply in answers):
            return json_reply(
                {f"worker-{worker}": None if reply is None else json.loads(reply["body"]) for worker, reply in answers}
            )
        parts = []
        for worker, reply in answers:
            said = "it does not answer" if reply is None else reply.get("problem") or reply["body"]
            parts.append(f"worker {worker}\n\n{said}")
        return text("\n".join(parts))


def _profiles(answers: Sequence[Answer]) -> Reply:
    """Folded stacks of all workers, below the name of each."""
    lines = []
    for worker, reply in answers:
        if reply is not None and "body" in reply:
            if reply["media_type"] == "application/json":
                raise Problem(400, "a profile in this format is of one worker: ?worker=1")
            lines += [f"worker-{worker};{line}" for line in reply["body"].splitlines()]
    return text("".join(f"{line}\n" for line in lines))


def _reply_of(answer: Mapping[str, Any]) -> Reply:
    if "problem" in answer:
        raise Problem(answer["status"], answer["problem"], **answer["headers"])
    return Reply(answer["body"].encode(), answer["media_type"], answer["status"], answer["headers"])
