# ASGI (HTTP): starts the tasks of requests, builds the scope in one pass, and gives and takes the messages of one request;
# nothing here waits.

asgi_log = logging.getLogger("pkg.asgi")

# From 2.4 on, send() raises OSError as soon as the client has left, and Starlette then no longer listens for http.disconnect.
# Ours still delivers after a FIN (uvicorn names 2.3 as well: its pull request 2513).
cdef dict asgi_versions = {"version": "3.0", "spec_version": "2.3"}
cdef list known_lower = [None] * NAME_SLOTS   # the lower-case bytes of each name in `known`; not changed after import
cdef dict status_lines = {status.value: f"{status.value} {status.phrase}".encode() for status in HTTPStatus}


def _fill_lower():
    for i in range(NAME_SLOTS):
        if known[i].length:
            known_lower[i] = known[i].text[:known[i].length].lower()


_fill_lower()


cdef bytes lower_name(const char *text, size_t length):
    cdef unsigned slot = name_hash(text, length)
    if length < NAME_MAX:
        while known[slot].length:
            if known[slot].length == length and memcmp(known[slot].text, text, length) == 0:
                return <bytes>known_lower[slot]
            slot = (slot + 1) & (NAME_SLOTS - 1)
    return text[:length].lower()


cdef inline bytes bytes_at(const char *data, http1.http1_span span):
    return PyBytes_FromStringAndSize(data + span.pos, span.len)


cdef bytes read_part(c.front *front, x.front_conn *conn, ssize_t *n):
    """What front_read() gives without waiting, or b""; `n`: what it returns."""
    cdef PyObject *room = new_bytes(NULL, 65536)
    n[0] = x.front_read(front, conn, PyBytes_AS_STRING(<object>room), 65536, False)
    _PyBytes_Resize(&room, max(n[0], 0))   # in place; a part of it would be a copy
    data = <bytes>room
    Py_DECREF(data)
    return data


cdef enum taking:   # what has become of a message of send()
    TAKING_FAILED = -1
    SENT
    FULL_NOW      # flush() has to send the rest
    FULL_BEFORE   # it has not been taken


cdef inline bint says(kind, const char *text, Py_ssize_t length) noexcept:
    return (isinstance(kind, str) and PyUnicode_GET_LENGTH(kind) == length and PyUnicode_KIND(kind) == PyUnicode_1BYTE_KIND
            and memcmp(PyUnicode_DATA(kind), text, length) == 0)


cdef str decode_path(const char *text, size_t length):
    """Percent-decoded, then UTF-8; what is none becomes U+FFFD."""
    cdef size_t i
    for i in range(length):
        if text[i] == c'%' or <unsigned char>text[i] >= 128:
            return unquote(text, length).encode("latin-1").decode("utf-8", "replace")
    return PyUnicode_DecodeLatin1(text, <Py_ssize_t>length, NULL)


cdef dict make_base(server, str root_path):
    """A scope with all keys, so that a copy need not grow, and with what most requests have."""
    keys = ("asgi", "path", "raw_path", "headers", "client", "extensions", "state")
    return {"type": "http", "http_version": "1.1", "method": "GET", "scheme": "http", "query_string": b"", "server": server,
            "root_path": root_path, **dict.fromkeys(keys)}


cdef dict make_scope(Request request, dict base, dict state):
    cdef const char *data = request.raw
    cdef http1.http1_head *head = &request.head
    cdef http1.http1_header *header
    cdef dict scope = PyDict_Copy(base)
    cdef list headers = []
    cdef bytes name, raw_path
    cdef str path, root_path = <str>scope["root_path"]
    cdef int i
    for i in range(head.n_headers):
        header = &head.headers[i]
        name = lower_name(data + header.name.pos, header.name.len)
        if head.form == http1.HTTP1_ABSOLUTE and name == b"host":
            continue   # RFC 9112 3.2.2: from the target, not from the field
        headers.append((name, bytes_at(data, header.value)))
    if head.form == http1.HTTP1_ABSOLUTE:
        headers.insert(0, (b"host", bytes_at(data, head.authority)))
    if head.path.len:
        path = decode_path(data + head.path.pos, head.path.len)
        raw_path = bytes_at(data, head.path)
    else:   # an absolute target without a path means the root (RFC 9112 3.2.1)
        path = "/"
        raw_path = b"/"
    # `path` has the prefix, whether a proxy has removed it or not.
    if root_path and not (path.startswith(root_path) and path[len(root_path):len(root_path) + 1] in ("", "/")):
        path = root_path + path
        raw_path = root_path.encode() + raw_path
    if head.minor == 0:
        scope["http_version"] = "1.0"
    if head.method_id != http1.HTTP1_GET:
        scope["method"] = method_names[head.method_id] or text_at(data, head.method)
    if request.scheme is not None:
        scope["scheme"] = request.scheme
    if head.query.len:
        scope["query_string"] = bytes_at(data, head.query)
    scope["asgi"] = PyDict_Copy(asgi_versions)
    scope["path"] = path
    scope["raw_path"] = raw_path
    scope["headers"] = headers
    client = get_address(request)
    if client[0]:
        scope["client"] = client
    scope["extensions"] = {"pkg.repeated": {}} if request.is_repeated else {}
    scope["state"] = PyDict_Copy(state)
    return scope


cdef int end_child_in_loop(Request request) except -1:
    """Ends this process if it is a child that the first step of a task has forked, and which then waits for something: the
    other requests are those of the parent."""
    if c.front_is_foreign(request.front._front):
        from pkg.child import end_in_loop
        end_in_loop()
    return 0


cdef enum:
    TURN = 300_000   # nanoseconds, so that the next look at the front comes within the millisecond after which its own thread leads

cdef object count_weak = weakref.getweakrefcount
cdef object ENDED = object()   # in place of what a step of the application gives to its task


@cython.final
cdef class Tasks:
    """The tasks of an event loop's requests: what they have in common, and how they begin.

    A task takes its first step at once, in the turn that has taken its request, and most need no other.  As making a task
    costs a short request a fifth of its time, one is there for them in advance, a SpareTask: it is the current one while the
    application takes its first step.  If that was all, and nothing has taken hold of it, it serves the next request.  Otherwise
    it goes on as any task of asyncio.
    """

    cdef readonly object host     # the event loop, with loop, fail() and watch()
    cdef readonly set exchanges   # of requests whose task has not ended with its first step
    cdef readonly object stepping # the one that takes that step now
    cdef object loop, app, await_it, receive, send, task_type
    cdef object enter, leave, register, unregister   # asyncio's, for whoever runs tasks
    cdef object enlist, delist    # the same for a first step, which is short
    cdef set listed               # by which asyncio knows its tasks (3.11), or None
    cdef SpareTask spare          # None: a request has taken it
    cdef bint has_spares
    cdef Handling being_made      # whose task asks for its first step
    cdef object step              # what it has asked for
    cdef object call_soon         # of the loop, meanwhile
    cdef list bases               # of scopes, for each listener
    cdef dict state
    cdef object on_request, on_response

    def __init__(self, host, app, await_it, receive, send, *, addresses, str root_path not None="", dict state not None,
                 on_request=None, on_response=None):
        import asyncio

        self.exchanges = set()
        self.host = host
        self.loop = host.loop
        self.app = app
        self.await_it = await_it
        self.receive = receive
        self.send = send
        self.task_type = asyncio.Task
        self.enter, self.leave = asyncio.tasks._enter_task, asyncio.tasks._leave_task
        self.register, self.unregister = asyncio.tasks._register_task, asyncio.tasks._unregister_task
        if sys.version_info >= (3, 12):
            self.enlist, self.delist = asyncio.tasks._register_eager_task, asyncio.tasks._unregister_eager_task
        else:
            self.listed = asyncio.tasks._all_tasks.data   # directly, as a WeakSet takes ten times as long
            self.enlist, self.delist = self.listed.add, self.listed.discard
        self.bases = [make_base(address, root_path) for address in addresses]
        self.state = state
        self.on_request = on_request
        self.on_response = on_response
        for function in (Exchange.receive, Exchange.send, Channel.receive):   # frameworks ask whether they are
            if sys.version_info >= (3, 12):
                import inspect

                inspect.markcoroutinefunction(function)
            else:
                function._is_coroutine = asyncio.coroutines._is_coroutine
        self.has_spares = self.task_type.__module__ == "_asyncio" and self.can_see_changes()

    def start(self, Front front not None):
        """Takes requests that are ready and serves each: lets its task take its first step.  Raises nothing.

        What is still ready after TURN waits in the front for the next turn, where it can time out and is counted."""
        cdef x.front_request taken
        cdef bint is_usual = self.has_spares and self.loop.get_task_factory() is None and not self.loop.get_debug()
        cdef int64_t until = c.front_now() + TURN
        while x.front_take(front._front, &taken, 0) == c.FRONT_OK:
            try:
                request = new_request(front, &taken)
            except MemoryError:
                x.front_finish(front._front, taken.conn, False, True, 0)
            else:
                self.serve(request, is_usual)
            if c.front_now() >= until:
                break

    cdef int serve(self, Request request, bint is_usual) except -1:
        cdef Exchange exchange = None
        try:
            if request.head.upgrade and request.asks_for_websocket:
                self.host.start_websocket(request)
                return 0
            self.stepping = exchange = Exchange.__new__(Exchange, request, self)
            if is_usual:
                self.step_at_once(exchange)
            else:
                self.keep(exchange, self.loop.create_task(Handling.__new__(Handling, exchange, self)))
        except BaseException:
            asgi_log.critical("%s %s: no task can be made", request.method, request.target, exc_info=True)
            if exchange is None:
                request.finish(False, True)
            else:
                exchange.release()
        self.stepping = None
        return end_child_in_loop(request)

    cdef int keep(self, Exchange exchange, task) except -1:
        """asyncio itself only has a weak reference to a task."""
        if not exchange.is_closed:
            exchange.task = task
            self.exchanges.add(exchange)
        return 0

    cdef int step_at_once(self, Exchange exchange) except -1:
        cdef SpareTask spare = self.spare
        self.spare = None
        if spare is None:
            spare = self.make_spare()
        spare.handling.exchange = exchange
        spare.step_first()
        if spare.handling.has_ended_at_once() and spare.is_untouched():
            self.spare = spare
            return 0
        return self.go_on_with(spare, exchange)

    cdef int go_on_with(self, SpareTask spare, Exchange exchange) except -1:
        """As a task of its own, which comes to know how the first step has ended by making it itself."""
        cdef Handling handling = spare.handling
        task = spare.task
        if handling.given is not ENDED:
            task._log_destroy_pending = True
            self.register(task)
        self.keep(exchange, task)
        try:
            spare.step()
        except BaseException as error:
            self.loop.call_exception_handler({"message": "the step of a task has failed", "exception": error})
        if handling.cancelled is not None:   # in its first step: now also what it waits for, which was not yet known
            task.cancel(*handling.cancelled.args)
            task.uncancel()
            handling.cancelled = None
        return 0

    cdef SpareTask make_spare(self):
        """Task() asks the loop to call its first step soon; this one's is not called by the loop."""
        cdef SpareTask spare = SpareTask.__new__(SpareTask)
        spare.tasks = self
        spare.handling = self.being_made = Handling.__new__(Handling, None, self)
        patched = vars(self.loop).get("call_soon")   # by something that watches the loop
        self.call_soon = self.loop.call_soon
        self.step = None
        self.loop.call_soon = self.take_step
        try:
            spare.task = self.task_type(spare.handling, loop=self.loop, name="request")   # by default a number
        finally:
            if patched is None:
                del self.loop.call_soon
            else:
                self.loop.call_soon = patched
            spare.step, self.step = self.step, None
            self.being_made = self.call_soon = None
        if spare.step is None:
            raise RuntimeError("asyncio.Task() has not asked for its first step")
        spare.task._log_destroy_pending = False
        self.unregister(spare.task)
        spare.weak = weakref.ref(spare.task)
        hash(spare.weak)   # which it keeps
        spare.entry = spare.task if self.listed is None else spare.weak
        spare.remember()
        return spare

    def take_step(self, callback, *args, context=None):
        """Stands in for the loop's call_soon() while a task is made.  Whatever else happens meanwhile, as by the garbage
        collector, is passed on."""
        task = getattr(callback, "__self__", None)
        if isinstance(task, self.task_type) and task.get_coro() is self.being_made and self.step is None:
            self.step = callback
            return None
        return self.call_soon(callback, *args, context=context)

    cdef bint can_see_changes(self) except -1:
        """Tries out whether this Python's tasks are as SpareTask expects them.  Otherwise each request has one of its own."""
        cdef SpareTask spare
        try:
            for change in CHANGES:
                spare = self.make_spare()
                kept = change(spare.task)
                if spare.is_untouched():
                    raise RuntimeError("a task does not show that it has been changed")
                kept = None
        except Exception:
            asgi_log.debug("each request has a task of its own", exc_info=True)
            return False
        return True


# What an application can do to its task.  What it returns, it keeps.
CHANGES = (
    lambda task: task,
    lambda task: task.get_coro(),
    lambda task: weakref.ref(task),
    lambda task: weakref.ref(task, print),
    lambda task: setattr(task, "changed", True),
    lambda task: task.set_name("changed"),
    lambda task: task.add_done_callback(print),
    lambda task: task.cancel(),
)


@cython.final
cdef class SpareTask:
    """A task that has been made in advance, with which one request after the other takes its first step.

    The next request must not see what the last one has done to it, nor the last one what becomes of it.  Whatever is done to a
    task needs a reference to it, and leaves something behind: the reference, strong or weak; an attribute in its dictionary; or
    a change of the object, as of its name, its callbacks, the requests to cancel it.  References are counted, of the dictionary
    nothing is needed but that it is empty, and the object is compared, as a whole, with what it was in the beginning.

    So nothing here knows how CPython lays out a task.  If it kept a part of one elsewhere, Tasks.can_see_changes() would
    find out, and there would be no spare tasks.  If it changed something in the object of its own accord, no task would seem
    untouched, and each would serve one request.  Neither is wrong; both are slower.
    """

    cdef Tasks tasks
    cdef Handling handling        # its coroutine
    cdef object task
    cdef object step              # what calls its first step
    cdef object weak              # the one weak reference to it
    cdef dict attributes
    cdef object entry             # of enlist() and delist()
    cdef bytes image              # of the object
    cdef Py_ssize_t known[3]      # references

    cdef int step_first(self) except -1:
        """Lets the application take its first step, as the current task."""
        cdef Tasks tasks = self.tasks
        tasks.enter(tasks.loop, self.task)
        tasks.enlist(self.entry)
        self.handling.step_first()
        tasks.delist(self.entry)
        tasks.leave(tasks.loop, self.task)
        return 0

    cdef int remember(self) except -1:
        self.attributes = PyObject_GenericGetDict(self.task, NULL)   # made now, and empty
        self.image = PyBytes_FromStringAndSize(<const char *><void *>self.task, <Py_ssize_t>type(self.task).__basicsize__)
        self.count(self.known)
        return 0

    cdef void count(self, Py_ssize_t *found) noexcept:
        """References to what belongs to the task.  Those to itself are in its image."""
        found[0] = Py_REFCNT(<PyObject *>self.handling)
        found[1] = Py_REFCNT(<PyObject *>self.weak)
        found[2] = Py_REFCNT(<PyObject *>self.attributes)

    cdef bint is_untouched(self) except -1:
        cdef Py_ssize_t found[3]
        self.count(found)
        return (memcmp(<void *>self.task, PyBytes_AS_STRING(self.image), <size_t>PyBytes_GET_SIZE(self.image)) == 0
                and memcmp(found, self.known, sizeof(found)) == 0 and not self.attributes
                and count_weak(self.task) == 1)


@cython.freelist(16)
@cython.final
cdef class Handling:
    """What the task of a request runs, in place of a coroutine: the application, and what has to be done after it."""

    cdef Tasks tasks
    cdef Exchange exchange        # None: there is nothing left to do
    cdef object rest              # the application's coroutine, while it waits
    # Of a first step that was not made by the task:
    cdef object context           # in which the application runs; the task's own, get_context(), is older than the request
    cdef object given             # what it has given, or ENDED
    cdef object error             # what it has raised
    cdef bint is_given            # the task has not yet come for either
    cdef object cancelled         # CancelledError: the application has cancelled its task in it

    def __cinit__(self, Exchange exchange, Tasks tasks not None):
        self.exchange = exchange
        self.tasks = tasks

    cdef int step_first(self) except -1:
        """The first step, in a context of its own."""
        context = PyContext_CopyCurrent()
        self.context = context
        self.given = ENDED
        self.is_given = False
        PyContext_Enter(context)
        try:
            self.given = self.run(None)
        except BaseException as error:
            self.error = error
        PyContext_Exit(context)
        self.is_given = True
        return 0

    cdef bint has_ended_at_once(self) noexcept:
        return self.given is ENDED and self.error is None

    cdef object run(self, tuple thrown):
        """A step of the application.  Returns what it gives to its task, or ENDED; raises what is to end the task."""
        cdef Exchange exchange = self.exchange
        cdef PyObject *result = NULL
        try:
            if self.rest is None:
                if thrown is not None:   # it has not begun
                    raise thrown[0]
                self.rest = self.tasks.app(exchange.get_scope(), exchange.receive, exchange.send)
                if not PyCoro_CheckExact(self.rest):
                    self.rest = self.tasks.await_it(self.rest)
            if thrown is not None:
                try:
                    return self.rest.throw(*thrown)
                except StopIteration:
                    pass
            elif PyIter_Send(self.rest, None, &result) == PYGEN_NEXT:
                given = <object>result
                Py_DECREF(given)
                return given
            else:
                Py_XDECREF(result)
            self.rest = None
            exchange.conclude()
        except BaseException as error:   # SystemExit in the application ends the request and not the event loop
            self.rest = None
            try:
                if self.tasks.host.fail(exchange, error):
                    raise
            finally:
                self.end()
        else:
            self.end()
        return ENDED

    cdef int end(self) except -1:
        """What keeps its task does not keep the request."""
        exchange, self.exchange, self.context = self.exchange, None, None
        if exchange is not None:
            exchange.release()
        return 0

    cdef object go_on(self, tuple thrown):
        if self.is_given:
            self.is_given = False
            return self.take_given(thrown)
        if self.exchange is None:
            raise RuntimeError("cannot reuse already awaited coroutine")
        context = self.context
        if context is None:
            return self.run(thrown)
        PyContext_Enter(context)
        try:
            return self.run(thrown)
        finally:
            PyContext_Exit(context)

    cdef object take_given(self, tuple thrown):
        """How the first step has ended.  What is thrown is that the application has cancelled its task in it."""
        given, self.given = self.given, None
        error, self.error = self.error, None
        if error is not None:
            raise error
        if thrown is not None:
            if given is ENDED:
                raise thrown[0]
            self.cancelled = thrown[0]
        return given

    def __await__(self):
        return self

    def __next__(self):
        given = self.go_on(None)
        if given is ENDED:
            raise StopIteration
        return given

    def send(self, value):
        return next(self)   # futures give nothing

    def throw(self, *error):
        given = self.go_on(error)
        if given is ENDED:
            raise StopIteration
        return given

    def close(self):
        if self.rest is not None:
            self.rest.close()   # ValueError: it runs
            self.rest = None
            self.end()

    # For asyncio's repr() of tasks, and for whoever looks for the place in which one waits: that is in the application.

    __name__ = __qualname__ = "request"

    @property
    def cr_await(self):
        return getattr(self.rest, "cr_await", None)

    @property
    def cr_frame(self):
        return getattr(self.rest, "cr_frame", None)

    @property
    def cr_running(self):
        return getattr(self.rest, "cr_running", False)

    @property
    def cr_suspended(self):
        return getattr(self.rest, "cr_suspended", False)


@cython.freelist(16)
@cython.final
cdef class Sending:
    """What send() returns: it acts when it is first awaited, as a coroutine does, and has what tasks need of one.

    Most messages are sent at once; that costs a third of a coroutine.  Otherwise `rest`, a coroutine, waits for the client.
    """

    cdef Exchange exchange   # None: it has been awaited
    cdef object message
    cdef object rest

    def __dealloc__(self):
        if self.exchange is not None:
            PyErr_WarnEx(RuntimeWarning, b"send() was never awaited", 1)

    cdef bint is_sent(self) except -1:
        """Sends; False: `rest` is needed."""
        cdef Exchange exchange = self.exchange
        cdef taking taken
        message = self.message
        if exchange is None:
            raise RuntimeError("cannot reuse already awaited coroutine")
        self.exchange = self.message = None
        taken = exchange.pass_message(message)
        if taken == SENT:
            return True
        self.rest = exchange.send_rest(message if taken == FULL_BEFORE else None)
        return False

    def __await__(self):
        return self

    def __next__(self):
        if self.rest is None and self.is_sent():
            raise StopIteration
        return self.rest.send(None)

    def send(self, value):
        return next(self) if value is None or self.rest is None else self.rest.send(value)

    def throw(self, *error):
        if self.rest is None:
            if self.exchange is None:
                raise RuntimeError("cannot reuse already awaited coroutine")
            self.rest = self.exchange.send_rest(self.message)   # it ends without having begun
            self.exchange = self.message = None
        return self.rest.throw(*error)

    def close(self):
        self.exchange = self.message = None
        if self.rest is not None:
            self.rest.close()

    # For asyncio's repr() of tasks, and for whoever looks for the place in which one waits: that is in its coroutine.

    __name__ = __qualname__ = "send"

    @property
    def cr_await(self):
        return getattr(self.rest, "cr_await", None)

    @property
    def cr_frame(self):
        return getattr(self.rest, "cr_frame", None)

    @property
    def cr_running(self):
        return False

    @property
    def cr_suspended(self):
        return self.rest is not None


@cython.freelist(16)
cdef class Exchange:
    """The messages of one request.

    next_message(), put() and flush() say whether something has to be waited for; then Front.moved() returns this object as soon
    as it is worth another try.  The connection is given back with the end of the response, whatever the application does
    after it.
    """

    cdef readonly Request request
    cdef readonly Tasks tasks
    cdef Response response
    cdef size_t flushed            # of request.unsent
    cdef readonly uint64_t taken   # bytes that had to wait and that the client has taken
    cdef bint body_given           # the end of the request's body
    cdef readonly bint has_ended   # the application has sent its last message
    cdef readonly bint is_reading  # next_message() waits for more of the body
    cdef bint dismissed            # the application is told that the client has left, although it has not
    cdef readonly bint has_left    # the application has been told that the client has left, before the end of the response
    cdef bint is_recorded          # on_response has been called
    cdef readonly bint is_closed   # its task has nothing left to do for it
    cdef public object task        # if it has not ended with its first step
    cdef list _waiting             # futures that wake() ends; None: never used
    cdef public int readers        # how many tasks wait for next_message(); of the host
    cdef double written_for        # seconds that the client has had to take what is left of a response
    cdef uint64_t mark             # `taken` when that time began

    def __cinit__(self, Request request not None, Tasks tasks not None):
        if request.front is None:
            raise ValueError("the request has no connection")
        request.never_waits = True
        self.request = request
        self.tasks = tasks

    def begin(self):
        """The scope.  To be called in the task, as the observer of requests may set context variables."""
        return self.get_scope()

    cdef dict get_scope(self):
        cdef Tasks tasks = self.tasks
        if type(tasks.on_request) is NewIds:   # directly, without Python
            (<NewIds>tasks.on_request).give(self.request)
        elif tasks.on_request is not None:
            tasks.on_request(self.request)
        return make_scope(self.request, <dict>tasks.bases[self.request.listener], tasks.state)

    cdef int conclude(self) except -1:
        """The application has returned.  Raises ResponseError if the response is not complete."""
        if c.front_is_foreign(self.request.front._front):
            end_child(None)
        if not self.has_ended and not self.has_left:
            raise ResponseError("the application has returned without a complete response")

    def close(self):
        """The end of the task."""
        self.release()

    cdef int release(self) except -1:
        self.is_closed = True
        if self.dismissed and self.has_left:   # an application that was told so does not complete its response
            self.end_stream()
        self.give_back()
        self.record()
        if self.task is not None:
            self.task = None
            self.tasks.exchanges.discard(self)

    cdef int record(self) except -1:
        """After the end of the response, whichever way it came about."""
        on_response = self.tasks.on_response
        if on_response is not None and self.request.conn is NULL and not self.is_recorded:
            self.is_recorded = True
            try:
                on_response(self.request)
            except Exception:
                asgi_log.exception("%s %s: handling the end of the request failed", self.request.method, self.request.target)
        return 0

    cdef int on_end(self) except -1:
        """The response is complete; with it there is nothing left to receive."""
        self.give_back()
        self.record()
        if self._waiting is not None:
            self.wake()
        return 0

    @property
    def waiting(self):
        if self._waiting is None:
            self._waiting = []
        return self._waiting

    def wake(self):
        """Lets all that wait try again."""
        if self._waiting is not None:
            waiting, self._waiting = self._waiting, None
            for future in waiting:
                if not future.done():
                    future.set_result(None)

    @property
    def has_started(self):
        """Whether a part of the response may have been sent."""
        return self.request.status != 0

    @property
    def is_finished(self):
        return self.request.conn is NULL

    @property
    def is_full(self):
        return self.request.unsent is not None

    # What the application gets; marked as coroutine functions by Tasks.

    @cython.binding(True)
    def receive(self):
        """The next message.  After the body it waits until the client leaves, or the response is complete."""
        return self.tasks.receive(self)

    @cython.binding(True)
    def send(self, message):
        """Sends a message; waits until the client, or its buffer, has taken all of it.

        Raises ClientDisconnected, an OSError, if the client does not take it any more, and ResponseError for what HTTP does
        not allow; nothing of that message has been sent then.
        """
        cdef Sending sending = Sending.__new__(Sending)
        sending.exchange = self
        sending.message = message
        return sending

    cdef taking pass_message(self, message) except TAKING_FAILED:
        """For Sending."""
        return self.take(message)

    cdef object send_rest(self, message):
        """The coroutine that waits for the client, and then sends `message`, if that could not be taken before."""
        return self.tasks.send(self, message)

    # --------------------------------------------------------------- request

    cdef bint awaits(self, unsigned what) except -1:
        """Whether something has to be waited for; False: it has happened already."""
        return check(x.front_await(self.request.front._front, self.request.conn, what, <void *>self)) == c.FRONT_AGAIN

    def next_message(self):
        """What receive() returns, or None: wait."""
        cdef Request request = self.request
        cdef c.front *front = request.front._front
        cdef bytes data
        cdef ssize_t n
        self.is_reading = False
        while request.conn is not NULL:
            if self.body_given:
                if self.dismissed or x.front_is_gone(request.conn) or not self.awaits(x.FRONT_LEFT):
                    break
                return None
            if request.whole_body is not None:
                self.body_given = True
                return {"type": "http.request", "body": request.whole_body, "more_body": False}
            data = read_part(front, request.conn, &n)
            if n == -EAGAIN:
                if not self.awaits(x.FRONT_READABLE):
                    continue
                self.is_reading = True
                return None
            if n < 0:
                self.body_given = True
                self.refuse(n)
                break
            request.body_read += <uint64_t>n
            self.body_given = n == 0 or not (x.front_body_pending(request.conn) or x.front_body_left(request.conn) > 0)
            return {"type": "http.request", "body": data, "more_body": not self.body_given}
        self.has_left = self.has_left or not self.has_ended
        return {"type": "http.disconnect"}

    cdef int refuse(self, ssize_t error) except -1:
        """The body is not what it should be: the client is told, and for the application it has left."""
        cdef Response response
        cdef Request request = self.request
        cdef dict texts = {408: b"the body did not arrive in time\n", 413: b"body too large\n", 400: b"malformed body\n",
                           503: b"no buffer is free\n"}
        request.keep_alive = False
        try:
            raise_body(error)
        except BodyError as failure:
            if request.status == 0:
                response = Response.__new__(Response, request)
                line = status_lines[failure.status]
                response.begin(failure.status, line, len(line))
                response.put_header("Content-Type", "text/plain; charset=utf-8")
                with contextlib.suppress(ClientDisconnected):
                    response.end(texts[failure.status])
        except ClientDisconnected:
            pass
        self.give_back()
        return 0

    def wait_on(self, double waited):
        """`waited` seconds have been spent since the last call, waiting for more of the body.  Ends the request if the
        client does not keep up; whether it does."""
        if self.request.conn is NULL or x.front_may_read_on(self.request.front._front, self.request.conn, nanoseconds(waited)):
            return True
        self.refuse(c.FRONT_E_LATE)
        return False

    def dismiss(self):
        """Makes next_message() say after the body that the client has left; the response may still be completed."""
        self.dismissed = True

    def keep_pace(self, double seconds, double write_timeout):
        """Counts `seconds` of waiting for the client, and gives it up if it does not keep up.  Whether it still has to be
        watched."""
        cdef bint is_watched = False
        if self.is_finished:
            return False
        if self.is_reading and self.readers:
            is_watched = True
            if not self.wait_on(seconds):
                self.wake()
                return False
        if self.is_full:
            is_watched = True
            self.written_for += seconds
            if self.written_for >= write_timeout:
                if not self.send_on(self.taken - self.mark):
                    self.wake()
                    return False
                self.begin_period()
        return is_watched

    def begin_period(self):
        """A write_timeout begins, in which the client has to take something."""
        self.written_for = 0
        self.mark = self.taken

    def end_stream(self):
        """Ends a response of server-sent events, so that its client sees it end in order; whether it was one that had not
        ended.  Such a stream has no end of its own; any other response would look complete."""
        cdef Response response = self.response
        if response is None or self.has_ended or self.request.conn is NULL or self.request.unsent is not None:
            return False
        if response.length >= 0 or b"\r\ncontent-type: text/event-stream" not in response.head[:response.head_len].lower():
            return False
        self.has_left = True   # what the application still sends raises
        try:
            response.emit(NULL, 0, True)
        except (ClientDisconnected, ResponseError):
            pass
        self.on_end()
        return True

    # -------------------------------------------------------------- response

    cdef int must_be_there(self) except -1:
        if self.request.conn is NULL:
            if self.has_ended:
                raise ResponseError("a message was sent after the end of the response")
            raise ClientDisconnected("the client has closed the connection")
        return 0

    def put(self, message):
        """Takes a message of send().  None: not yet, as is_full; False: all of it has been sent; True: flush() has to send the
        rest."""
        return (False, True, None)[<int>self.take(message)]

    cdef taking take(self, given) except TAKING_FAILED:
        cdef Response response = self.response
        cdef Py_buffer view
        if self.request.unsent is not None:
            return FULL_BEFORE
        if not isinstance(given, dict):
            raise ResponseError(f"the message is {type(given).__name__}, not dict")
        cdef dict message = <dict>given   # or a class of its own, which Cython's own check does not allow
        kind = message.get("type")
        if self.has_ended:
            raise ResponseError("a message was sent after the end of the response")
        if says(kind, b"http.response.body", 18):
            if response is None:
                raise ResponseError("http.response.body was sent before http.response.start")
            self.must_be_there()
            data = message.get("body", b"")
            last = not message.get("more_body", False)
            try:
                if type(data) is bytes:
                    if last or PyBytes_GET_SIZE(data) > 0:
                        response.emit(PyBytes_AS_STRING(data), PyBytes_GET_SIZE(data), last)
                    else:
                        response.flush()
                elif data is None or isinstance(data, str):
                    raise ResponseError(f"the response body is {type(data).__name__}, not bytes")
                else:
                    PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
                    try:
                        response.emit(<const char *>view.buf, view.len, last)
                    finally:
                        PyBuffer_Release(&view)
            except ClientDisconnected:
                self.abort()
                raise
            self.has_ended = last
            if self.request.unsent is not None:
                return FULL_NOW
            if last:
                self.on_end()
        elif says(kind, b"http.response.start", 19):
            if response is not None:
                raise ResponseError("http.response.start was sent twice")
            self.must_be_there()
            response = self.start(message)
            if self.response is not None:   # it was sent by what made the headers
                raise ResponseError("http.response.start was sent twice")
            self.response = response
        elif isinstance(kind, str):
            raise ResponseError(f"the message {kind!r} is not known for HTTP")
        else:
            raise ResponseError("the message has no type")
        return SENT

    cdef Response start(self, dict message):
        cdef Response response = Response.__new__(Response, self.request)
        given = message.get("status")
        cdef long long status = given if isinstance(given, int) else 0   # a class of its own may say anything of its value
        if not 200 <= status <= 999:
            raise ResponseError(f"{given!r} is not a final status code")
        line = status_lines.get(status) or f"{status}".encode()
        response.begin(<int>status, line, len(line))
        for name, value in message.get("headers") or ():
            if type(name) is not bytes or type(value) is not bytes:
                raise ResponseError(f"the header {name!r} is not a pair of bytes")
            response.put_checked(PyBytes_AS_STRING(name), PyBytes_GET_SIZE(name), PyBytes_AS_STRING(value),
                                 PyBytes_GET_SIZE(value), True)
        return response

    def flush(self):
        """Sends what the socket did not take.  Whether all of it has been sent; otherwise wait."""
        cdef Request request = self.request
        cdef x.iovec iov
        cdef size_t size
        cdef int rv
        while request.unsent is not None:
            if request.conn is NULL:
                request.unsent = None
                raise ClientDisconnected("the client has closed the connection or does not read")
            size = <size_t>PyBytes_GET_SIZE(request.unsent)
            iov.iov_base = PyBytes_AS_STRING(request.unsent) + self.flushed
            iov.iov_len = size - self.flushed
            rv = x.front_send(request.front._front, request.conn, &iov, 1, request.unsent_keep, False)
            if rv < 0:
                self.abort()
                raise ClientDisconnected("the client has closed the connection or does not read")
            self.taken += size - self.flushed - iov.iov_len
            self.flushed = size - iov.iov_len
            if rv == c.FRONT_AGAIN:
                if self.awaits(x.FRONT_WRITABLE):
                    return False
                continue
            request.unsent = None
            self.flushed = 0
            if self.has_ended:
                self.on_end()
        return True

    def send_on(self, uint64_t taken):
        """A write_timeout has passed since the last call, and `taken` bytes were taken.  Ends the request if the client does
        not keep up; whether it does."""
        if self.request.conn is NULL or x.front_may_send_on(self.request.front._front, self.request.conn, taken):
            return True
        self.abort()
        return False

    cdef int abort(self) except -1:
        """Cuts the connection, unless the client has got all of a response."""
        if self.request.unsent is not None:
            self.request.answered = False   # and flush() raises
        finish_request(self.request, False, True)
        return 0

    def finish(self):
        self.give_back()

    cdef int give_back(self) except -1:
        """Gives the connection back.  A response that is not complete is cut off."""
        if self.request.unsent is not None or self.request.status == 0:
            self.abort()
        else:
            finish_request(self.request, True, not self.request.answered)
        return 0
