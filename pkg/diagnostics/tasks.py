"""Where the tasks of an event loop are: for each its chain of coroutines, down to what the innermost one awaits.

It reads them from another thread, between two steps of the event loop: a chain may be a moment old, and nothing is
changed.  Like stacks, chains contain files, lines and functions, never the value of a variable.

Its importers are there in each process, and asyncio is not (3 MB): only the functions import it.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from pkg.diagnostics import stacks
from pkg.logs import context

if TYPE_CHECKING:
    import asyncio

__all__ = [
    "Serving",
    "TaskState",
    "best_place",
    "capture",
    "chain",
    "count",
    "grouped",
    "of",
    "place",
    "running",
    "serving",
    "text",
]

MAX_TASKS = 1000  # that are looked at; there may be one for each connection


class Serving(NamedTuple):
    """A request of an event loop: its task, and what the front knows of it."""

    method: str
    target: str  # without the query
    age: float  # seconds since its head was complete
    ids: tuple[str, str, str] | None  # trace id, span id, request id
    task: asyncio.Task[Any] | None
    has_ended: bool  # its response has, and the task goes on
    is_websocket: bool  # which has been accepted

    def __str__(self) -> str:
        return f"{self.method} {self.target}"


class TaskState(NamedTuple):
    """A task, and where it is: the calls from the outermost to the innermost.

    `state`: running, ready (its turn will come), or waiting for `awaits`.  `serves`: the request to which it belongs.
    """

    name: str
    state: str
    frames: tuple[stacks.Frame, ...]
    awaits: str
    serves: Serving | None

    def document(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "state": self.state,
            "request": str(self.serves) if self.serves is not None else None,
            "request_id": self.serves.ids[2] if self.serves is not None and self.serves.ids else None,
            "frames": [{**frame._asdict(), "source": frame.source} for frame in self.frames],
            "awaits": self.awaits,
        }


# What stands between a coroutine and what it awaits, and does not say what that is.
_BETWEEN = ("async_generator_asend", "async_generator_athrow", "coroutine_wrapper", "anext_awaitable", "FutureIter")
# Attributes of coroutines, generators and asynchronous generators; Cython's have the same.
_KINDS = (("cr_frame", "cr_await"), ("gi_frame", "gi_yieldfrom"), ("ag_frame", "ag_await"))


def _is_known(awaited: object) -> bool:
    import asyncio

    if isinstance(awaited, asyncio.Future) or type(awaited).__name__ in _BETWEEN:
        return True
    return any(hasattr(awaited, frame) for frame, _ in _KINDS)


def _without_ours(frames: Sequence[stacks.Frame]) -> tuple[stacks.Frame, ...]:
    """Without those at the beginning that only run the task or the callback."""
    first = next((n for n, frame in enumerate(frames) if not stacks.is_own(frame.file)), 0)
    return tuple(frames[first:])


def chain(awaited: Any) -> tuple[tuple[stacks.Frame, ...], str]:
    """The calls of a coroutine that waits, the outermost first, and what the innermost one awaits, in words."""
    frames: list[stacks.Frame] = []
    for _ in range(2 * stacks.MAX_DEPTH):
        if type(awaited).__name__ in _BETWEEN:
            awaited = next(filter(_is_known, gc.get_referents(awaited)), None)
            continue
        kind = next((kind for kind in _KINDS if hasattr(awaited, kind[0])), None)
        if kind is None:
            return tuple(frames), _in_words(awaited)
        frame = getattr(awaited, kind[0])
        if frame is None:  # it has ended meanwhile
            break
        if len(frames) == stacks.MAX_DEPTH:
            del frames[0]
        code = frame.f_code
        frames.append(stacks.Frame(code.co_filename, frame.f_lineno or code.co_firstlineno, code.co_name))
        if (awaited := getattr(awaited, kind[1])) is None:
            break
    return tuple(frames), ""


def _in_words(awaited: Any) -> str:
    import asyncio

    if isinstance(awaited, asyncio.Task):
        return f"task {awaited.get_name()}"
    if (children := getattr(awaited, "_children", None)) is not None:  # of asyncio.gather()
        return f"{len(children)} tasks"
    return "a future" if isinstance(awaited, asyncio.Future) else f"a {type(awaited).__qualname__}"


def _ids_of(task: asyncio.Task[Any]) -> tuple[str, str, str] | None:
    """The ids of the request in whose context the task was made; None before Python 3.12, which does not tell."""
    get_context = getattr(task, "get_context", None)
    return get_context().get(context.bound) if get_context is not None else None


class _Requests:
    """Finds the request of a task: its own, or the one in whose context it was made."""

    def __init__(self, serving: Iterable[Serving]) -> None:
        self._by_task: dict[asyncio.Task[Any], Serving] = {}
        self._by_ids: dict[tuple[str, str, str], Serving] = {}
        for request in serving:
            if request.task is not None:
                self._by_task[request.task] = request
            if request.ids is not None:
                self._by_ids[request.ids] = request

    def of(self, task: asyncio.Task[Any]) -> Serving | None:
        if (own := self._by_task.get(task)) is not None:
            return own
        ids = _ids_of(task)
        return self._by_ids.get(ids) if ids is not None and ids[2] else None


def _stack_of(ident: int | None) -> tuple[stacks.Frame, ...]:
    """The calls of the thread of an event loop."""
    frames = stacks.walk(sys._current_frames().get(ident or 0))
    found = _without_ours(frames)
    return found if found != frames else frames[-1:]


def serving(eventloop: Any) -> list[Serving]:
    """The requests of the event loop, the oldest first, at most MAX_TASKS.

    `eventloop.serving()` returns each request whose task has not ended, and the task.
    """
    found = [
        Serving(
            request.method,
            request.target.partition("?")[0],
            request.duration,
            request.context,
            task,
            request.is_finished,
            request.status == 101,
        )
        for request, task in eventloop.serving()
    ]
    return sorted(found, key=lambda request: -request.age)[:MAX_TASKS]


def running(eventloop: Any) -> TaskState:
    """What the thread of the event loop runs now: a task, or a callback, which has no name."""
    import asyncio

    task = asyncio.current_task(eventloop.loop)
    frames = _stack_of(eventloop.thread.ident)
    if task is None:
        return TaskState("", "running", frames, "", None)
    return TaskState(task.get_name(), "running", frames, "", _Requests(serving(eventloop)).of(task))


def capture(eventloop: Any, requests: Sequence[Serving] | None = None) -> list[TaskState]:
    """All tasks of the event loop, at most MAX_TASKS; those of requests first, the oldest first.

    `eventloop` has `loop`, `thread` and serving(); `requests`: those of serving(), if the caller has them.
    """
    import asyncio

    requests = serving(eventloop) if requests is None else requests
    known = _Requests(requests)
    now = asyncio.current_task(eventloop.loop)
    tasks = {request.task: None for request in requests if request.task is not None}
    tasks |= dict.fromkeys(sorted(asyncio.all_tasks(eventloop.loop) - tasks.keys(), key=asyncio.Task.get_name))
    found: list[TaskState] = []
    for task in list(tasks)[:MAX_TASKS]:
        if task.done():
            continue
        if task is now:
            state, frames, awaits = "running", _stack_of(eventloop.thread.ident), ""
        else:
            state = "waiting" if getattr(task, "_fut_waiter", None) is not None else "ready"
            frames, awaits = chain(task.get_coro())
            frames = _without_ours(frames)
        found.append(TaskState(task.get_name(), state, frames, awaits, known.of(task)))
    return found


def of(task: asyncio.Task[Any]) -> TaskState:
    """Where a task is that waits."""
    frames, awaits = chain(task.get_coro())
    return TaskState(task.get_name(), "waiting", _without_ours(frames), awaits, None)


def place(frames: Sequence[stacks.Frame]) -> stacks.Frame | None:
    """Where the application is in a chain, or else its innermost frame."""
    found = stacks.place_of(frames)
    return found if found is not None else frames[-1] if frames else None


def _runs(task: TaskState) -> bool:
    return task.state == "running"


def best_place(found: Sequence[TaskState]) -> stacks.Frame | None:
    """Where the application is in the tasks of a request: in the one that runs, or in the last that it has made."""
    for task in [*filter(_runs, found), *reversed(found)]:
        if (at := stacks.place_of(task.frames)) is not None and not stacks.is_library(at.file):
            return at
    return next((at for task in found if (at := place(task.frames)) is not None), None)


def count(eventloop: Any) -> int:
    """Tasks of the event loop that have not ended."""
    import asyncio

    return len(asyncio.all_tasks(eventloop.loop))


def grouped(tasks: Iterable[TaskState]) -> list[list[TaskState]]:
    """Tasks at the same place together, the largest group first."""
    groups: dict[object, list[TaskState]] = {}
    for task in tasks:
        # Names differ, and so would the groups of those that wait for a task.
        awaits = "task" if task.awaits.startswith("task ") else task.awaits
        groups.setdefault((task.state, task.frames, awaits), []).append(task)
    return sorted(groups.values(), key=lambda group: -len(group))


def text(task: TaskState, indent: str = "    ") -> str:
    """Its chain as lines of text, the innermost call last, and what that awaits."""
    lines = [stacks.text(task.frames, indent)] if task.frames else []
    if task.awaits:
        lines.append(f"{indent}which waits for {task.awaits}")
    return "\n".join(lines)
