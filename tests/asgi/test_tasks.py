"""The task of a request, and what an application may do with its receive() and send() beside awaiting them."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import inspect
import json
import warnings
import weakref
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import anyio
import anyio.to_thread
import asgiref.sync
import pytest

from pkg.errors import ResponseError
from pkg.http.server import Server
from tests.support.client import Connection, wait_for
from tests.support.servers import serving_asgi

Scope = dict[str, Any]
Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]

START: dict[str, Any] = {"type": "http.response.start", "status": 200, "headers": []}
DISCONNECT = {"type": "http.disconnect"}
mark = contextvars.ContextVar("mark", default="unset")


async def first_step(scope: Scope, receive: Receive, send: Send) -> Any:
    """Runs in a task of its own, with a context of its own."""
    task = asyncio.current_task()
    assert task is not None and task in asyncio.all_tasks() and not task.done()
    before = mark.get()
    mark.set("set")
    return [before, anyio.get_current_task().id == id(task), asyncio.get_running_loop() is task.get_loop()]


async def later_steps(scope: Scope, receive: Receive, send: Send) -> Any:
    mark.set("mine")
    task = asyncio.current_task()
    await asyncio.sleep(0)
    async with asyncio.timeout(10):
        await asyncio.sleep(0.001)
    return [mark.get(), asyncio.current_task() is task, task in asyncio.all_tasks()]


async def calls_soon(scope: Scope, receive: Receive, send: Send) -> Any:
    """The loop's own call_soon is there, in the first step as well."""
    called = asyncio.Event()
    loop = asyncio.get_running_loop()
    handle = loop.call_soon(called.set)
    loop.call_soon(called.clear).cancel()
    await called.wait()
    return [type(handle).__name__, "call_soon" in vars(loop)]


async def times_out(scope: Scope, receive: Receive, send: Send) -> Any:
    """asyncio.timeout() cancels the task of the request."""
    await receive()
    try:
        async with asyncio.timeout(0.01):
            await receive()
    except TimeoutError:
        return "timeout"


async def uses_anyio(scope: Scope, receive: Receive, send: Send) -> Any:
    """Which finds out that this is asyncio, cancels in its own way, and starts functions of its own tasks."""
    found = []

    async def take() -> None:
        found.append((await receive())["type"])

    async with anyio.create_task_group() as group:
        group.start_soon(take)
    with anyio.move_on_after(0.01) as scope_of_time:
        await receive()
    async with anyio.create_task_group() as group:
        group.start_soon(send, START)
    message = await anyio.to_thread.run_sync(lambda: {"type": "http.response.body", "body": b'"anyio"'})
    assert found == ["http.request"] and scope_of_time.cancelled_caught
    await send(message)


async def receives_in_a_task(scope: Scope, receive: Receive, send: Send) -> Any:
    task = asyncio.create_task(receive())  # type: ignore[arg-type]
    return (await task)["type"]


async def waits_for_receive(scope: Scope, receive: Receive, send: Send) -> Any:
    """Also after the body, where it only ends with the response."""
    first = await asyncio.wait_for(receive(), 10)
    try:
        await asyncio.wait_for(receive(), 0.01)
    except TimeoutError:
        return first["type"]


async def shields_receive(scope: Scope, receive: Receive, send: Send) -> Any:
    await receive()
    inner = asyncio.ensure_future(receive())
    try:
        await asyncio.wait_for(asyncio.shield(inner), 0.01)
    except TimeoutError:
        return inner.done() or inner


async def cancels_receive(scope: Scope, receive: Receive, send: Send) -> Any:
    """A receive() that is cancelled takes nothing away from the next one."""
    await receive()
    task = asyncio.create_task(receive())  # type: ignore[arg-type]
    await asyncio.sleep(0)
    task.cancel()
    result = await asyncio.gather(task, return_exceptions=True)
    return [type(result[0]).__name__, asyncio.create_task(receive())]  # type: ignore[arg-type]


async def two_receive(scope: Scope, receive: Receive, send: Send) -> Any:
    await receive()
    return [asyncio.create_task(receive()), asyncio.create_task(receive())]  # type: ignore[arg-type]


async def forgets_to_await(scope: Scope, receive: Receive, send: Send) -> Any:
    """What is not awaited has not happened: the start is sent once, the message is still there, and Python says so."""
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        send(START)
        send({"type": "http.response.body", "body": b"forgotten"})
        receive()
        gc.collect()
    return [len([w for w in found if "never awaited" in str(w.message)]), (await receive())["type"]]


async def sends_twice(scope: Scope, receive: Receive, send: Send) -> Any:
    """What has been awaited cannot be awaited again, and nothing is sent twice."""
    sending = send(START)
    await sending
    try:
        await sending
    except RuntimeError as error:
        await send({"type": "http.response.body", "body": json.dumps(str(error)).encode()})


async def sends_by_hand(scope: Scope, receive: Receive, send: Send) -> Any:
    """As Python itself uses coroutines: closed or thrown into before it has begun, nothing has been sent."""
    sending: Any = send({"type": "http.response.body", "body": b"closed"})
    sending.close()
    sending = send({"type": "http.response.body", "body": b"thrown"})
    try:
        sending.throw(KeyError("thrown"))
    except KeyError:
        sending = send({"type": "nonsense"})
    try:
        sending.send(None)
    except ResponseError as error:
        return str(error)


async def is_inspected(scope: Scope, receive: Receive, send: Send) -> Any:
    """Frameworks ask what they have got before they call or await it."""
    sending = send({"type": "http.response.body"})
    coroutine = receive()
    found = [
        *(asyncio.iscoroutinefunction(function) for function in (receive, send)),
        *(asgiref.sync.iscoroutinefunction(function) for function in (receive, send)),
        *(asyncio.iscoroutine(one) and inspect.isawaitable(one) for one in (coroutine, sending)),
    ]
    coroutine.close()  # type: ignore[attr-defined]
    sending.close()  # type: ignore[attr-defined]
    return found


async def sends_in_tasks(scope: Scope, receive: Receive, send: Send) -> Any:
    await asyncio.create_task(send(START))  # type: ignore[arg-type]
    await asyncio.wait_for(asyncio.shield(send({"type": "http.response.body", "body": b'"sent"'})), 10)


kept: list[Any] = []


async def keeps_its_task(scope: Scope, receive: Receive, send: Send) -> Any:
    """It ends like any other, although the application has never waited; the next request has another one."""
    task = asyncio.current_task()
    before, kept[:] = list(kept), [task]
    return all(other is not task and other.done() and other.result() is None for other in before)


steps: list[Any] = []


async def shares_its_task(scope: Scope, receive: Receive, send: Send) -> Any:
    """With the next request, as nothing has touched it.  What would call its first step is the same."""
    referrers = gc.get_referrers(asyncio.current_task())
    steps.append(next(one for one in referrers if type(one).__name__ == "TaskStepMethWrapper"))
    return all(one is steps[0] for one in steps)


def with_task(change: Callable[[asyncio.Task[Any]], object]) -> Any:
    """Changes its task, of which the next request must not see anything."""

    async def case(scope: Scope, receive: Receive, send: Send) -> Any:
        task = asyncio.current_task()
        assert task is not None
        found = [task.get_name() == "changed", hasattr(task, "changed"), task.cancelling()]
        found.append(any(one() is not None for one in weak))
        change(task)
        return found

    return case


weak: list[weakref.ref[asyncio.Task[Any]]] = []
called: list[asyncio.Task[Any]] = []


async def calls_back(scope: Scope, receive: Receive, send: Send) -> Any:
    task = asyncio.current_task()
    assert task is not None
    task.add_done_callback(called.append)
    return all(one.done() and one is not task for one in called)


async def cancels_itself(scope: Scope, receive: Receive, send: Send) -> Any:
    """In its first step: it ends where it waits next, and so does what it waits for."""
    task, inner = asyncio.current_task(), asyncio.create_task(asyncio.sleep(60))
    assert task is not None
    task.cancel()
    try:
        await inner
    except asyncio.CancelledError:
        await asyncio.sleep(0)
        return [inner.cancelled(), task.uncancel(), task.cancelling()]


async def cancels_itself_and_says_why(scope: Scope, receive: Receive, send: Send) -> Any:
    task = asyncio.current_task()
    assert task is not None
    task.cancel("why")
    try:
        await asyncio.sleep(60)
    except asyncio.CancelledError as error:
        return [list(error.args), task.uncancel()]


coroutines: list[Any] = []


async def keeps_its_coroutine(scope: Scope, receive: Receive, send: Send) -> Any:
    """It has ended with its request, and shows nothing of the next one."""
    task = asyncio.current_task()
    assert task is not None
    coroutines.append(task.get_coro())
    *before, this = coroutines
    return [this.cr_running, any(other is this or other.cr_frame is not None for other in before)]


async def steps_itself(scope: Scope, receive: Receive, send: Send) -> Any:
    """Which no coroutine can; it goes on unharmed."""
    task, found = asyncio.current_task(), []
    assert task is not None
    this: Any = task.get_coro()
    for step in (lambda: this.send(None), lambda: this.throw(KeyError()), this.close):
        try:
            step()
        except (RuntimeError, ValueError):
            found.append("refused")
    await asyncio.sleep(0)
    return found


class Thing:
    """Which can be referred to weakly."""


things: list[Any] = []
thing = contextvars.ContextVar[Thing]("thing")


async def keeps_its_task_alone(scope: Scope, receive: Receive, send: Send) -> Any:
    """What was in the context of the request goes with it, although the task is kept."""
    is_left = any(one() is not None for one, _ in things)
    thing.set(Thing())
    things.append((weakref.ref(thing.get()), asyncio.current_task()))
    return is_left


async def leaves_nothing(scope: Scope, receive: Receive, send: Send) -> Any:
    """Between two requests there is no task for them."""

    def look() -> None:
        names = [task.get_name() for task in asyncio.all_tasks()]
        ended["leaves_nothing"] = [asyncio.current_task() is None, "request" in names]

    asyncio.get_running_loop().call_soon(look)
    await send(START)
    await send({"type": "http.response.body", "body": b"null"})


CASES: dict[str, tuple[Any, Any]] = {
    "first_step": (first_step, ["unset", True, True]),
    "later_steps": (later_steps, ["mine", True, True]),
    "calls_soon": (calls_soon, ["Handle", False]),
    "times_out": (times_out, "timeout"),
    "uses_anyio": (uses_anyio, "anyio"),
    "receives_in_a_task": (receives_in_a_task, "http.request"),
    "waits_for_receive": (waits_for_receive, "http.request"),
    "shields_receive": (shields_receive, DISCONNECT),
    "cancels_receive": (cancels_receive, ["CancelledError", DISCONNECT]),
    "two_receive": (two_receive, [DISCONNECT, DISCONNECT]),
    "forgets_to_await": (forgets_to_await, [3, "http.request"]),
    "sends_twice": (sends_twice, "cannot reuse already awaited coroutine"),
    "sends_by_hand": (sends_by_hand, "the message 'nonsense' is not known for HTTP"),
    "is_inspected": (is_inspected, [True] * 6),
    "sends_in_tasks": (sends_in_tasks, "sent"),
    "shares_its_task": (shares_its_task, True),
    "keeps_its_task": (keeps_its_task, True),
    "names_its_task": (with_task(lambda task: task.set_name("changed")), [False, False, 0, False]),
    "marks_its_task": (with_task(lambda task: setattr(task, "changed", True)), [False, False, 0, False]),
    "is_cancelled": (with_task(lambda task: task.cancel()), [False, False, 0, False]),
    "knows_its_task": (with_task(lambda task: weak.append(weakref.ref(task))), [False, False, 0, False]),
    "calls_back": (calls_back, True),
    "cancels_itself": (cancels_itself, [True, 0, 0]),
    "cancels_itself_and_says_why": (cancels_itself_and_says_why, [["why"], 0]),
    "keeps_its_coroutine": (keeps_its_coroutine, [True, False]),
    "steps_itself": (steps_itself, ["refused"] * 3),
    "keeps_its_task_alone": (keeps_its_task_alone, False),
    "leaves_nothing": (leaves_nothing, [True, False]),
}
ended: dict[str, Any] = {}  # what the tasks that a case has left have returned


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    name = scope["path"].strip("/")
    if name == "ended":
        while (answer := ended.pop(scope["query_string"].decode(), None)) is None:
            await asyncio.sleep(0.001)  # they end after the response
    elif (answer := await CASES[name][0](scope, receive, send)) is None:
        return
    tasks = [part for part in (answer if isinstance(answer, list) else [answer]) if isinstance(part, asyncio.Future)]
    body = json.dumps(None if tasks else answer).encode()
    await send(START)
    await send({"type": "http.response.body", "body": body})
    if tasks:
        parts = [await part if part in tasks else part for part in (answer if isinstance(answer, list) else [answer])]
        ended[name] = parts if isinstance(answer, list) else parts[0]


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with serving_asgi(app) as server:
        yield server


@pytest.mark.parametrize("name", CASES)
def test_what_an_application_may_do(server: Server, name: str) -> None:
    expected = CASES[name][1]
    with Connection(server.server_address) as c:
        for _ in range(2):  # the second one finds what the first one has left behind
            answer = json.loads(c.request("GET", f"/{name}").body)
            if answer is None:
                answer = json.loads(c.request("GET", f"/ended?{name}").body)
            assert answer == expected


def test_an_application_may_return_whatever_can_be_awaited() -> None:
    class Awaited:
        def __init__(self, *given: Any) -> None:
            self.given = given

        def __await__(self) -> Any:
            return app(*self.given).__await__()

    with serving_asgi(Awaited) as server, Connection(server.server_address) as c:
        assert json.loads(c.request("GET", "/later_steps").body) == CASES["later_steps"][1]
        assert json.loads(c.request("GET", "/first_step").body) == CASES["first_step"][1]


def test_what_replaces_call_soon_of_the_loop_stays_there() -> None:
    """As tools do that watch a loop; making a task in advance is the only thing that replaces it as well."""
    called: list[Any] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        loop = asyncio.get_running_loop()
        if not called:
            original = loop.call_soon

            def call_soon(*args: Any, **options: Any) -> Any:
                called.append(args)
                return original(*args, **options)

            loop.call_soon = call_soon  # type: ignore[method-assign, assignment]
        kept.append(asyncio.current_task())  # the next request needs another
        await asyncio.sleep(0)
        await send(START)
        await send({"type": "http.response.body", "body": vars(loop)["call_soon"].__name__.encode()})

    with serving_asgi(app) as server, Connection(server.server_address) as c:
        assert [c.request("GET", "/").body for _ in range(3)] == [b"call_soon"] * 3
    assert called


def test_other_kinds_of_tasks_are_made_for_each_request(monkeypatch: pytest.MonkeyPatch) -> None:
    """Libraries that let loops nest put Python's own in the place of asyncio.Task; of those none is made in advance."""
    monkeypatch.setattr(asyncio, "Task", asyncio.tasks._PyTask)  # type: ignore[attr-defined]
    monkeypatch.setattr(asyncio.tasks, "Task", asyncio.tasks._PyTask)  # type: ignore[attr-defined]
    found: list[asyncio.Task[Any] | None] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        found.append(asyncio.current_task())
        await send(START)
        await send({"type": "http.response.body", "body": mark.get().encode()})
        mark.set("set")

    with serving_asgi(app) as server, Connection(server.server_address) as c:
        assert [c.request("GET", "/").body for _ in range(3)] == [b"unset"] * 3
    assert len(set(found)) == 3 and {type(one) for one in found} == {asyncio.tasks._PyTask}  # type: ignore[attr-defined]


def test_a_task_that_waits_in_send_can_be_looked_at() -> None:
    """Its chain of coroutines goes on into the one that waits for the client."""
    found: list[Any] = []

    async def look(task: asyncio.Task[Any]) -> None:
        while not found:
            await asyncio.sleep(0.01)
            names, one = [], task.get_coro()
            while hasattr(one, "cr_await"):
                names.append(one.cr_frame.f_code.co_name if one.cr_frame is not None else "-")
                one = one.cr_await
            if "_wait" in names:
                found.append((names, repr(task)))

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send(START)
        task = asyncio.current_task()
        assert task is not None
        looking = asyncio.create_task(look(task))
        while not looking.done():
            await send({"type": "http.response.body", "body": bytes(1 << 20), "more_body": True})
        await send({"type": "http.response.body"})

    with serving_asgi(app, response_buffer_size=0) as server, Connection(server.server_address) as c:
        c.send(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        wait_for(lambda: found)
        assert c.receive().status == 200
    names, text = found[0]
    assert names == ["app", "send", "_drain", "_wait"] and "coro=<request" in text


@pytest.mark.parametrize("what", ["debug", "task factory"])
def test_what_wants_to_see_every_task(what: str) -> None:
    """asyncio's debug mode, and a factory of tasks that an application has set, see those of requests as well."""
    made: list[str] = []

    def factory(loop: asyncio.AbstractEventLoop, coro: Any, **options: Any) -> asyncio.Task[Any]:
        made.append(coro.__qualname__)
        return asyncio.Task(coro, loop=loop, **options)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        loop = asyncio.get_running_loop()
        if what == "debug":
            loop.set_debug(True)
        else:
            loop.set_task_factory(factory)
        await send(START)
        await send({"type": "http.response.body", "body": repr(len(made)).encode()})

    with serving_asgi(app) as server, Connection(server.server_address) as c:
        bodies = [c.request("GET", "/").body for _ in range(3)]
    assert bodies == ([b"0"] * 3 if what == "debug" else [b"0", b"1", b"2"])
