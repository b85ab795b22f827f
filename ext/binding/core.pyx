# cython: language_level=3, binding=False, auto_pickle=False, boundscheck=False, wraparound=False, freethreading_compatible=True
"""The C core as Python sees it: the front, a request that it lends to a worker, and the response to it.

Only this file and the parts it includes know both worlds.  C returns codes, exceptions are made here; the
interpreter lock is crossed in `with nogil:` blocks around one C call.
"""

cimport cython
from cpython.buffer cimport PyBUF_SIMPLE, PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.contextvars cimport PyContext_CopyCurrent, PyContext_Enter, PyContext_Exit, PyContextVar_Set
from cpython.dict cimport PyDict_Copy, PyDict_SetDefault
from cpython.object cimport PyObject
from cpython.ref cimport Py_DECREF, Py_XDECREF
from cpython.unicode cimport PyUnicode_AsUTF8AndSize, PyUnicode_DecodeLatin1, PyUnicode_DecodeUTF8
from libc.errno cimport EAGAIN, EALREADY, EINVAL, EIO, ENOBUFS, ENOMEM, EPIPE
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint64_t
from libc.stdlib cimport free, malloc, realloc
from libc.string cimport memchr, memcmp, memcpy, memset
from posix.time cimport CLOCK_REALTIME, clock_gettime, timespec

cimport carrier as w
cimport exchange as x
cimport front as c
cimport http1
cimport init
cimport pages as p
cimport access_record as r
cimport request_id as ids
cimport tally
from text cimport text_digits, text_is_name, text_put_octet

from collections import namedtuple
from http import HTTPStatus
import contextlib
import io
import logging
import os
import stat
import sys
import time
import weakref

from pkg.errors import (
    BodyError,
    ClientDisconnected,
    ResponseError,
)

log = logging.getLogger("pkg.server")

cdef extern from "Python.h":
    int PyErr_WarnEx(object category, const char *message, Py_ssize_t level) except -1
    int PyUnicode_KIND(object text)
    void *PyUnicode_DATA(object text)
    Py_ssize_t PyUnicode_GET_LENGTH(object text)
    int PyUnicode_1BYTE_KIND
    Py_ssize_t PY_SSIZE_T_MAX
    bint PyCoro_CheckExact(object)
    int PYGEN_NEXT
    int PyIter_Send(object iterator, object value, PyObject **result) except -1
    Py_ssize_t Py_REFCNT(PyObject *)
    object PyObject_GenericGetDict(object, void *)
    PyObject *new_bytes "PyBytes_FromStringAndSize"(const char *text, Py_ssize_t length) except NULL
    int _PyBytes_Resize(PyObject **only_reference, Py_ssize_t length) except -1


include "request.pxi"
include "access.pxi"
include "ids.pxi"
include "frames.pxi"
include "response.pxi"
include "environ.pxi"
include "asgi.pxi"
include "websocket.pxi"

__all__ = ["Body", "Channel", "Exchange", "Front", "News", "Request", "Response", "Stage", "Tasks", "WSGIHandler", "parse_head", "watch_over",
           "ChunkedDecoder", "NewIds", "ParseError", "first_outside", "new_request_id"]


def watch_over(int child):
    with nogil:
        init.init_watch_over(child)


class News:
    """What Front.wait() returns, as a set (enum front_news)."""

    REQUESTS = x.FRONT_REQUESTS
    MOVED = x.FRONT_MOVED
    OTHERS = x.FRONT_OTHERS
    LATE = x.FRONT_LATE


class Stage:
    """The stages of a front in their order (enum front_stage)."""

    SERVING = c.FRONT_SERVING
    DRAINING = c.FRONT_DRAINING
    CLOSING = c.FRONT_CLOSING
    STOPPED = c.FRONT_STOPPED


cdef enum:
    MAX_FLIGHTS = 1000   # that are listed
    MAX_LOSSES = 100     # or requests of a worker


cdef int64_t nanoseconds(double seconds):
    return <int64_t>(seconds * 1e9)


cdef int check(int rv) except -1:
    if rv < 0:
        raise OSError(-rv, os.strerror(-rv))
    return rv


cdef object as_flight(c.front_flight *flight):
    return Flight(method=flight.method.decode("latin-1"), target=flight.target.decode("utf-8", "backslashreplace"),
                  age=flight.age / 1e9, thread=flight.thread, late=flight.late, awaits=AWAITS[flight.awaits])


cdef object end_child(error):
    """Ends this process if it is a child that the handler has forked: it must not return into the worker's loop."""
    from pkg.child import end
    end(error)


def list_counters():
    """The type of stats(), which of its items are counted in nanoseconds, and (item, metric, kind, help) of those with
    a metric."""
    cdef unsigned i = 0
    cdef const c.front_counter *line
    items, nanoseconds, counters = [], [], []
    while (line := c.front_counter_at(i)) is not NULL:
        name = line.name.decode()
        is_nanoseconds = name.endswith("_ns")
        name = name.removesuffix("_ns") + "_seconds" * is_nanoseconds
        items.append(name)
        nanoseconds.append(is_nanoseconds)
        if line.metric is not NULL:
            counters.append((name, line.metric.decode(), "counter" if line.is_event else "gauge", line.help.decode()))
        i += 1
    return namedtuple("Counters", items, module="pkg._core"), nanoseconds, tuple(counters)


Counters, NANOSECONDS, COUNTERS = list_counters()
Flight = namedtuple("Flight", "method target age thread late awaits", module="pkg._core")
Turn = namedtuple("Turn", "number took waited", module="pkg._core")
WorkerState = namedtuple("WorkerState", "in_flight queued served expires is_broken", module="pkg._core")
AWAITS = {c.FRONT_AWAITS_NOTHING: "", c.FRONT_AWAITS_BODY: "body", c.FRONT_AWAITS_ROOM: "room"}
OUTCOMES = {w.FRONT_REPEATED: "repeated", w.FRONT_502: "502", w.FRONT_CUT: "cut"}
Prober = namedtuple("Prober", "client user_agent page count status age", module="pkg._core")
Exemplar = namedtuple("Exemplar", "method status bucket trace_id seconds at", module="pkg._core")


def list_limits():
    cdef unsigned i = 0
    cdef const c.front_limit *line
    limits = {}
    while (line := c.front_limit_at(i)) is not NULL:
        limits[line.name.decode()] = {c.FRONT_KIND_DURATION: float, c.FRONT_KIND_FLAG: bool}.get(line.kind, int)
        i += 1
    return limits


LIMITS = list_limits()


cdef set_limits(c.front_limits *limits, dict given):
    """Each from the keyword of its name, or its default."""
    cdef const c.front_limit *line
    for i, name in enumerate(LIMITS):
        line = c.front_limit_at(<unsigned>i)
        if name not in given:
            c.front_limit_set(limits, line, line.usual)
            continue
        value = given.pop(name)
        if line.kind == c.FRONT_KIND_DURATION:
            number = int(<double>value * 1e9)
        elif line.kind == c.FRONT_KIND_FLAG:
            number = bool(value)
        elif value is None or isinstance(value, (str, bytes)):
            raise TypeError("an integer is required")
        else:
            number = int(value)
        if not line.least <= number <= line.most:
            raise ValueError(f"{name} is out of range: {value}")
        c.front_limit_set(limits, line, number)
    for name in given:
        raise TypeError(f"__init__() got an unexpected keyword argument {name!r}")
    limits.n_proxies = 0
    limits.body_spool = NULL
    limits.parallel = not getattr(sys, "_is_gil_enabled", lambda: True)()


cdef inline int wait_for_request(c.front *front, x.front_request *taken) noexcept:
    """For a worker: FRONT_OK, or FRONT_CLOSED."""
    cdef int64_t came = 0
    cdef int rv
    while True:
        rv = x.front_come(front, taken, 0, &came)
        if rv == c.FRONT_TIMEOUT:
            with nogil:
                rv = x.front_come(front, taken, -1, &came)
        if rv != c.FRONT_TIMEOUT:
            return rv


Listen = namedtuple("Listen", "fd name shared pages requests proxied", defaults=("", False, True, True, False),
                    module="pkg._core")


cdef class Front:
    cdef c.front *_front
    cdef readonly double started
    cdef readonly tuple listeners
    cdef bint names_listener   # in access records

    def __init__(self, listeners, *, proxies=(), body_spool=None, **given):
        cdef c.front_limits limits
        cdef c.front_listen[c.FRONT_MAX_LISTENERS] sockets
        cdef bytes directory = os.fsencode(body_spool) if body_spool else None
        if self._front is not NULL:
            raise RuntimeError("a Front can be opened only once")
        set_limits(&limits, given)
        if len(proxies) > c.FRONT_MAX_NETWORKS:
            raise ValueError(f"there can be at most {c.FRONT_MAX_NETWORKS} networks of proxies")
        limits.n_proxies = <unsigned>len(proxies)
        limits.body_spool = NULL if directory is None else PyBytes_AS_STRING(directory)
        for i, network in enumerate(proxies):
            packed = network.network_address.packed
            mapped = packed if len(packed) == 16 else b"\0" * 10 + b"\xff\xff" + packed
            memcpy(limits.proxies[<int>i].address, <const char *>mapped, 16)
            limits.proxies[<int>i].bits = network.prefixlen + (0 if len(packed) == 16 else 96)
        self.listeners = (Listen(listeners),) if isinstance(listeners, int) else tuple(listeners)
        if not 0 < len(self.listeners) <= c.FRONT_MAX_LISTENERS:
            raise ValueError(f"there can be 1 to {c.FRONT_MAX_LISTENERS} listeners")
        for i, (fd, _, shared, pages, requests, proxied) in enumerate(self.listeners):
            sockets[<int>i] = c.front_listen(fd, shared, pages, requests, proxied)
        self.names_listener = len(self.listeners) > 1
        check(c.front_open(&self._front, sockets, <unsigned>len(self.listeners), &limits))

    def __dealloc__(self):
        if self._front is not NULL:
            c.front_close(self._front)

    @classmethod
    def remote(cls, int area, int bell, *, listeners=(), **given):
        cdef c.front_limits limits
        cdef Front self = cls.__new__(cls)
        set_limits(&limits, given)
        self.listeners = tuple(listeners)
        self.names_listener = len(self.listeners) > 1
        check(c.front_open_remote(&self._front, area, bell, &limits))
        return self

    # ------------------------------------------------------------------ worker processes

    def open_workers(self):
        return check(w.front_open_workers(self._front))

    def carry(self):
        cdef int rv
        with nogil:
            rv = w.front_carry(self._front)
        check(rv)

    def add_worker(self, unsigned threads, bint streams):
        cdef unsigned number = 0
        cdef int fd = check(w.front_add_worker(self._front, threads, streams, &number))
        return number, fd

    def suit_worker(self, unsigned number, unsigned room, bint streams):
        check(w.front_suit_worker(self._front, number, room, streams))

    def admit_worker(self, unsigned number):
        check(w.front_admit_worker(self._front, number))

    def retire_worker(self, unsigned number):
        check(w.front_retire_worker(self._front, number))

    def lose_worker(self, unsigned number):
        cdef w.front_loss[MAX_LOSSES] losses
        cdef ssize_t n
        with nogil:
            n = w.front_lose_worker(self._front, number, losses, MAX_LOSSES)
        check(<int>n)
        return [(*as_flight(&losses[i].flight)[:2], OUTCOMES[losses[i].outcome]) for i in range(min(n, MAX_LOSSES))]

    def worker_requests(self, unsigned number):
        cdef c.front_flight[MAX_LOSSES] flights
        cdef ssize_t n
        with nogil:
            n = w.front_worker_requests(self._front, number, flights, MAX_LOSSES)
        check(<int>n)
        return [as_flight(&flights[i]) for i in range(min(n, MAX_LOSSES))]

    def worker_state(self, unsigned number):
        cdef w.front_worker_state now
        cdef int64_t at
        cdef int rv
        with nogil:
            rv = w.front_worker_now(self._front, number, &now)
            at = c.front_now()
        check(rv)
        expires = tuple([(now.expires[i] - at) / 1e9 if now.expires[i] else None for i in range(w.PAGES_SLOTS)])
        return WorkerState(now.in_flight, now.queued, now.served, expires, now.is_broken)

    # ------------------------------------------------------------------ the loop

    def run(self):
        cdef int rv
        with nogil:
            rv = c.front_run(self._front)
        check(rv)

    def advance(self, int stage):
        c.front_advance(self._front, <c.front_stage>stage)

    @property
    def is_foreign(self):
        return c.front_is_foreign(self._front)

    @property
    def stage(self):
        return <int>c.front_stage_now(self._front)

    @property
    def close_fault(self):
        return c.front_close_fault(self._front)

    def accepted(self, unsigned listener):
        return c.front_accepted(self._front, listener)

    def watch_signals(self, int fd, draining, int last_words=0, double give_up=0):
        cdef uint64_t bits = 0
        cdef int number
        for number in draining:
            bits |= <uint64_t>1 << (number & 63)
        c.front_give_up_after(self._front, nanoseconds(give_up) if give_up > 0 else 0)
        check(c.front_watch_signals(self._front, fd, bits, last_words))

    def take(self, double timeout=-1):
        cdef x.front_request taken
        cdef int64_t wait
        cdef int rv
        if timeout < 0:
            rv = wait_for_request(self._front, &taken)
        else:
            wait = nanoseconds(timeout)
            with nogil:
                rv = x.front_take(self._front, &taken, wait)
        if rv == c.FRONT_OK:
            return new_request(self, &taken)
        if rv == c.FRONT_TIMEOUT and timeout >= 0:
            raise TimeoutError("no request arrived in time")
        return None

    def work(self, handle, failed, after, server, before=None):
        """Runs a worker: calls handle(request, client_address, server) for each request until the front stops.

        failed(request, client_address) is called with what handle raised; before(request) and after(request), if
        given, ahead of it and when all is done.
        """
        cdef x.front_request taken
        cdef Request request
        cdef WSGIHandler wsgi = None   # called directly, without Python
        cdef int rv
        if isinstance(handle, WSGIHandler) and type(handle).__call__ is WSGIHandler.__call__:
            wsgi = handle
        while True:
            rv = wait_for_request(self._front, &taken)
            if rv != c.FRONT_OK:
                return
            try:
                request = new_request(self, &taken)
            except MemoryError:
                x.front_finish(self._front, taken.conn, False, True, 0)
                continue
            try:
                try:
                    if before is not None:
                        before(request)
                    if wsgi is not None:
                        serve_wsgi(request, wsgi)
                        finish_request(request, True, False)
                    else:
                        handle(request, get_address(request), server)
                except BaseException as error:   # SystemExit in a handler ends the request and not the worker
                    if c.front_is_foreign(self._front):
                        end_child(error)
                    failed(request, get_address(request))
                else:
                    if c.front_is_foreign(self._front):
                        end_child(None)
                finally:
                    if request.conn is not NULL:
                        finish_request(request, request.status != 0, request.status == 0)
                if after is not None:
                    after(request)
            except BaseException:   # raised by failed or after; the worker continues
                log.exception("%s %s: handling the end of the request failed", request.method, request.target)
            request = None

    def serve_by_eventloop(self, int fd):
        check(x.front_serve_by_eventloop(self._front, fd))

    def wait(self, double timeout):
        cdef int64_t longest = -1 if timeout < 0 else nanoseconds(timeout)
        cdef unsigned news
        with nogil:
            news = x.front_wait(self._front, longest)
        return news

    def serve_by_reader(self):
        return check(x.front_serve_by_reader(self._front))

    def look(self):
        return x.front_look(self._front)

    def settle(self):
        return x.front_settle(self._front)

    @property
    def eventloop_looks(self):
        return x.front_eventloop_looks(self._front)

    @property
    def eventloop_turn(self):
        return x.front_eventloop_turn(self._front) / 1e9

    def turns(self):
        cdef tally.tally_waits turns
        x.front_turns(self._front, &turns)
        return [turns.count[b] for b in range(tally.TALLY_WAITS)], turns.sum / 1e9

    def watch_turns(self):
        cdef c.front_turn turn
        cdef int rv
        with nogil:
            rv = x.front_watch_turns(self._front, &turn)
        if check(rv) != c.FRONT_OK:
            return None
        return Turn(turn.number, turn.took / 1e9, (c.front_now() - turn.at) / 1e9)

    def take_late(self):
        x.front_take_late(self._front)

    def moved(self):
        cdef void *tag
        cdef list exchanges = []
        while (tag := x.front_moved(self._front)) is not NULL:
            exchanges.append(<Exchange>tag)
        return exchanges

    def publish(self, table):
        cdef p.pages *built = p.pages_new(len(table))
        cdef int number
        cdef bytes path, headers, body
        if built is NULL:
            raise ValueError(f"there can be at most {p.PAGES_MAX} pages")
        try:
            for name, slot, fresh, expired, draining in table:
                path = name.encode()
                number = check(p.pages_add(built, path, len(path), slot))
                for which, answers in enumerate((fresh, expired, draining)):
                    for kind, (status, headers, body) in enumerate(answers or ()):
                        check(p.pages_set_answer(built, number, <p.pages_set><int>which, <p.pages_format><int>kind,
                                                 status, headers, len(headers), body, len(body)))
        except BaseException:
            p.pages_free(built)
            raise
        c.front_publish(self._front, built)

    def renew(self, unsigned slot, double seconds):
        c.front_renew(self._front, slot, nanoseconds(seconds))

    @property
    def frozen(self):
        return c.front_frozen(self._front) / 1e9

    def clock(self):
        return c.front_clock(self._front) / 1e9

    def stats(self):
        cdef c.front_counters counters
        cdef unsigned i = 0
        c.front_count(self._front, &counters)
        numbers = []
        for is_nanoseconds in NANOSECONDS:
            number = c.front_counter_of(&counters, c.front_counter_at(i))
            numbers.append(number / 1e9 if is_nanoseconds else number)
            i += 1
        return Counters._make(numbers)

    def requests(self, size_t most=MAX_FLIGHTS):
        return self.flights(c.FRONT_TAKEN | c.FRONT_QUEUED, most)

    def queued(self, size_t most=MAX_FLIGHTS):
        return self.flights(c.FRONT_QUEUED, most)

    def websockets(self, size_t most=MAX_FLIGHTS):
        return self.flights(c.FRONT_SWITCHED, most)

    cdef list flights(self, unsigned which, size_t most):
        cdef size_t size = most if most < MAX_FLIGHTS else MAX_FLIGHTS, n
        cdef c.front_flight *flights = <c.front_flight *>malloc((size + 1) * sizeof(c.front_flight))
        if flights is NULL:
            raise MemoryError
        try:
            n = c.front_requests(self._front, which, flights, size)
            return [as_flight(&flights[i]) for i in range(n)]
        finally:
            free(flights)

    def durations(self):
        cdef tally.tally_series[tally.TALLY_SERIES] series
        cdef size_t n = c.front_durations(self._front, series, tally.TALLY_SERIES)
        return [
            (method_names[series[i].method] or "_OTHER", series[i].status,
             [series[i].count[b] for b in range(tally.TALLY_BUCKETS)], series[i].sum / 1e9)
            for i in range(n)
        ]

    def exemplars(self):
        cdef tally.tally_exemplar[tally.TALLY_EXEMPLARS] found
        cdef size_t n = c.front_exemplars(self._front, found)
        return [
            Exemplar(
                method=method_names[found[i].method] or "_OTHER",
                status=found[i].status,
                bucket=found[i].bucket,
                trace_id=found[i].trace[:tally.TALLY_TRACE].hex(),
                seconds=found[i].duration / 1e9,
                at=found[i].when / 1e9,
            )
            for i in range(n)
        ]

    def queue_waits(self):
        cdef tally.tally_waits waits
        c.front_waits(self._front, &waits)
        return [waits.count[b] for b in range(tally.TALLY_WAITS)], waits.sum / 1e9

    def probers(self):
        cdef tally.tally_prober[tally.TALLY_PROBERS] found
        cdef size_t n = c.front_probers(self._front, found, tally.TALLY_PROBERS)
        cdef char[x.INET6_ADDRSTRLEN] text
        cdef int64_t now = c.front_now()
        out = []
        for i in range(n):
            c.inet_ntop(x.AF_INET6, found[i].who.address, text, x.INET6_ADDRSTRLEN)
            out.append(Prober(
                client=text.decode("ascii").removeprefix("::ffff:"),
                user_agent=found[i].who.agent[:found[i].who.agent_len].decode("latin-1"),
                page=found[i].who.page[:found[i].who.page_len].decode("latin-1"),
                count=found[i].count,
                status=found[i].status,
                age=(now - found[i].last) / 1e9,
            ))
        return out


DURATION_BOUNDS = tuple([tally.tally_bounds[i] / 1e9 for i in range(tally.TALLY_BUCKETS - 1)])
QUEUE_WAIT_BOUNDS = tuple([tally.tally_wait_bounds[i] / 1e9 for i in range(tally.TALLY_WAITS - 1)])


# ------------------------------------------------------------------ only the parser, for tests and benchmarks


class ParseError(ValueError):
    """A malformed head or chunked body; `status`: of the response, `name`: the violated rule (HTTP1_ERRORS)."""

    def __init__(self, int error):
        super().__init__(http1.http1_error_text(error).decode())
        self.name = http1.http1_error_name(error).decode()
        self.status = http1.http1_error_status(error)


def parse_head(bytes data, size_t seen=0, *, unsigned max_header_size=32_768, unsigned max_headers=100,
               unsigned max_target_size=8192):
    cdef http1.http1_limits limits
    cdef Request request = Request.__new__(Request)
    cdef int rv
    limits.max_head_size = <uint16_t>max_header_size
    limits.max_target_size = <uint16_t>max_target_size
    limits.max_headers = <uint16_t>max_headers
    rv = http1.http1_parse_head(PyBytes_AS_STRING(data), len(data), seen, &limits, &request.head)
    if rv == http1.HTTP1_PARTIAL:
        return None
    if rv < 0:
        raise ParseError(rv)
    request.raw = data
    request.head_size = rv
    request.keep_alive = request.head.keep_alive
    request.size = <int64_t>request.head.content_length if request.head.has_length else -1
    return request


cdef class ChunkedDecoder:
    cdef http1.http1_chunked decoder
    cdef readonly bint complete

    def __cinit__(self):
        http1.http1_chunked_init(&self.decoder)

    def decode(self, bytes data):
        cdef size_t consumed = len(data), produced = 0
        cdef bytes out = PyBytes_FromStringAndSize(NULL, len(data))
        cdef int rv = http1.http1_chunked_decode(&self.decoder, data, &consumed, PyBytes_AS_STRING(out), &produced)
        if rv < 0:
            raise ParseError(rv)
        self.complete = rv == 1
        return out[:produced], consumed
