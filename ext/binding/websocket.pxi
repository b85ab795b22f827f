# WebSockets: the switch to raw bytes, frames of data on their way to the client, simple ones from it, and what receive() and
# send() do with them.  All other frames from the client, the rules of the protocol, and waiting for a slow client are left to
# Python.

cdef enum:
    ROOM = 65536            # bytes of one read
    FINAL_TEXT = 0x81       # the first byte of a frame, without reserved bits
    FINAL_BINARY = 0x82
    MOST_HELD = 65536       # bytes of messages that wait for the application; a longer message waits alone
    MOST_MESSAGES = 32
    MOST_IN_A_TURN = 64     # messages, in both directions; a long one counts as several


cdef void unmask(unsigned char *data, size_t size, const unsigned char *key) noexcept nogil:
    """RFC 6455 5.3; once more, and it is masked again."""
    cdef size_t i
    cdef uint64_t word, wide
    cdef unsigned char[8] twice
    memcpy(twice, key, 4)
    memcpy(twice + 4, key, 4)
    memcpy(&wide, twice, 8)
    for i in range(0, size & ~<size_t>7, 8):
        memcpy(&word, data + i, 8)
        word ^= wide
        memcpy(data + i, &word, 8)
    for i in range(size & ~<size_t>7, size):
        data[i] ^= key[i & 3]


cdef void mask_again(unsigned char *data, size_t size) noexcept nogil:
    """The frames of take_messages() up to the one at `size`."""
    cdef size_t at = 0, n
    while at < size:
        n = data[at + 1] & 0x7f
        at += 6
        if n == 126:
            n = <size_t>data[at - 4] << 8 | data[at - 3]
            at += 2
        unmask(data + at, n, data + at - 4)
        at += n


@cython.freelist(16)
@cython.final
cdef class Receiving:
    """What receive() of a WebSocket returns: it acts when it is awaited, as a coroutine does, and has what tasks need of one.

    When a message waits, or comes first, it is what costs least; a coroutine that awaits another one costs five times as much.
    """

    cdef Channel channel     # None: it has ended
    cdef object future       # that it waits for
    cdef bint has_begun

    def __dealloc__(self):
        if not self.has_begun:
            PyErr_WarnEx(RuntimeWarning, b"receive() was never awaited", 1)

    cdef int leave(self) except -1:
        """It ends without a message."""
        cdef Channel channel = self.channel
        self.has_begun = True
        self.channel = None
        if self.future is not None and channel._waiting is not None and self.future in channel._waiting:
            channel._waiting.remove(self.future)
        self.future = None
        return 0

    def __await__(self):
        return self

    def __next__(self):
        cdef Channel channel = self.channel
        if channel is None:
            raise RuntimeError("cannot reuse already awaited coroutine")
        self.has_begun = True
        self.future = None
        message = channel.next_event()
        if message is not None:
            self.channel = None
            raise StopIteration(message)
        if channel.messages:   # others run first
            return None
        self.future = channel.tasks.loop.create_future()
        self.future._asyncio_future_blocking = True   # as its own __await__ does
        channel.waiting.append(self.future)
        if channel.request.unsent is not None:
            channel.hold()
        return self.future

    def send(self, value):
        return next(self)

    def throw(self, error, value=None, traceback=None):
        if self.channel is None:
            raise RuntimeError("cannot reuse already awaited coroutine")
        self.leave()
        if value is None:
            value = error() if isinstance(error, type) else error
        raise value if traceback is None else value.with_traceback(traceback)

    def close(self):
        self.leave()

    # As of Sending.

    __name__ = __qualname__ = "receive"
    cr_frame = cr_await = None
    cr_running = False

    @property
    def cr_suspended(self):
        return self.channel is not None and self.has_begun


cdef class Channel(Exchange):
    """An exchange that may become a connection of raw bytes, by 101 (Switching Protocols).

    What it does not do itself, it asks of its subclass: go_on(), take_in(), read_soon(), count_held(), has_ended_early(),
    put_other(), pack(), finish_send(), hold(), break_off() and fail().
    """

    cdef readonly bint is_open      # 101 has been passed to the front, and the connection has not been given back
    cdef public bint is_waiting     # Front.moved() will return this object when there is more to read
    cdef public bint is_ready       # both sides may send data
    cdef public list messages       # for the application
    cdef readonly uint64_t held     # bytes of them
    cdef readonly size_t reserved   # of these and of those of which a part has come, what counts against buffer_size
    cdef bint has_connected         # the application has been told
    cdef public dict farewell       # its last message
    cdef public object fragments    # of a message that has not ended
    cdef public bytes late          # a control frame that follows what the client has not taken yet
    cdef public bint was_heard      # the client, since this was cleared
    cdef public size_t most         # bytes of one read
    cdef public uint64_t max_size   # bytes of a message
    cdef public Py_ssize_t pack_from   # bytes or characters; a shorter message is not compressed
    cdef unsigned turn              # of MOST_IN_A_TURN
    cdef uint64_t read_size         # bytes of the messages that read() has returned last
    # Where the bytes that are left to Python stand: their last frame's payload lacks so much, or of its header there is so much.
    cdef uint64_t lacks
    cdef unsigned char[14] header
    cdef unsigned has_header

    def __cinit__(self, *arguments):
        self.messages = []
        self.was_heard = True
        self.most = ROOM
        self.pack_from = PY_SSIZE_T_MAX

    def begin(self):
        """The scope."""
        cdef dict scope = Exchange.begin(self)
        del scope["method"]
        scope["type"] = "websocket"
        scope["asgi"]["spec_version"] = "2.5"   # here send() raises once the client has left
        scope["scheme"] = "wss" if scope["scheme"] in ("https", "wss") else "ws"
        offers = ",".join([value.decode("latin-1") for name, value in scope["headers"] if name == b"sec-websocket-protocol"])
        scope["subprotocols"] = [offer.strip() for offer in offers.split(",") if offer.strip()]
        scope["extensions"] = {"websocket.http.response": {}}
        return scope

    def close(self):
        """The end of the task, which the connection may survive."""
        self.is_closed = True
        if not self.is_open:
            self.give_back()
        self.record()
        if self.task is not None:
            self.task = None
            self.tasks.exchanges.discard(self)

    def switch(self, list headers not None):
        cdef Request request = self.request
        cdef Response response
        cdef x.iovec iov
        self.must_be_there()
        response = Response.__new__(Response, request)
        response.begin(101, b"101 Switching Protocols", 23)
        for name, value in headers:
            if type(name) is not bytes or type(value) is not bytes:
                raise ResponseError(f"the header {name!r} is not a pair of bytes")
            response.put_checked(PyBytes_AS_STRING(name), PyBytes_GET_SIZE(name), PyBytes_AS_STRING(value),
                                 PyBytes_GET_SIZE(value), True)
        if not response.has_date:
            response.put(response_date(), DATE_LINE_SIZE)
        if request.request_id is not None and not response.has_request_id:
            response.put_request_id(request.request_id)
        response.put(b"Connection: Upgrade\r\n\r\n", 23)
        if x.front_switch(request.front._front, request.conn) != c.FRONT_OK:
            self.abort()
            raise ClientDisconnected("the client has closed the connection")
        request.keep_alive = False
        request.size = -1     # what has been received counts, for the access record
        request.status = 101
        self.is_open = True
        iov.iov_base = response.head
        iov.iov_len = response.head_len
        self.pass_on(&iov, 1)
        return None

    # ---------------------------------------------------- the application's messages

    @cython.binding(True)
    def receive(self):
        """The next message.  The last one, websocket.disconnect, is said again whenever it is asked for."""
        cdef Receiving receiving = Receiving.__new__(Receiving)
        receiving.channel = self
        return receiving

    cdef bint turn_is_over(self, Py_ssize_t size):
        """Whether others have to run first: with a fast client an application would never have to wait."""
        self.turn += 1 + <unsigned>(size // 4096)
        if self.turn < MOST_IN_A_TURN:
            return False
        self.turn = 0
        return True

    cdef object next_event(self):
        """What receive() returns.  None: wait, or, if there are messages, let others run first."""
        if not self.has_connected:
            self.has_connected = True
            return {"type": "websocket.connect"}
        if self.messages:
            if self.turn_is_over(0):
                return None
            message = self.messages.pop(0)
            if not self.messages:
                self.held = 0
                if self.reserved:
                    self.count_held()
                if not self.is_waiting:
                    self.read_soon()
            return message
        if self.farewell is None and (self.is_ready or not self.has_ended_early()):
            return None
        return PyDict_Copy(self.farewell)

    cdef bint is_laden_now(self):
        return self.is_ready and (self.held >= MOST_HELD or len(self.messages) >= MOST_MESSAGES)

    @property
    def is_laden(self):
        return self.is_laden_now()

    def add_messages(self, list messages not None, size=None):
        self.messages += messages
        self.held += self.read_size if size is None else size

    def forget_held(self):
        self.held = 0

    def wake(self):
        """The connection can go on.  Raises nothing, as its caller waits for all connections."""
        self.is_waiting = False   # for reading; it is said again by read()
        try:
            if self.is_ready and self.fragments is None and self.late is None and self.request.unsent is None and not self.messages:
                data = self.read(self.most, self.max_size)
                if type(data) is list:
                    self.was_heard = True
                    self.messages = data
                    self.held = self.read_size
                    if not self.is_waiting and not self.is_laden_now():
                        self.read_soon()
                else:
                    self.take_in(data)
            else:
                self.go_on()
        except ClientDisconnected:
            self.break_off()
        except Exception:
            self.fail()
        Exchange.wake(self)

    def notify(self):
        """Lets all that wait try again."""
        Exchange.wake(self)

    cdef Py_ssize_t put_message(self, dict message) except -1:
        """The size of the message, if it was data."""
        cdef Py_ssize_t size
        cdef int first = FINAL_BINARY
        kind = message.get("type")
        if not self.is_ready or not says(kind, b"websocket.send", 14):
            self.put_other(message, kind)
            return 0
        data = message.get("bytes")
        if data is None:
            first = FINAL_TEXT
            data = message.get("text")
            if not isinstance(data, str):
                raise ResponseError("websocket.send has neither bytes nor text")
        elif not isinstance(data, (bytes, bytearray, memoryview)):
            raise ResponseError(f"the bytes of websocket.send are {type(data).__name__}")
        size = len(data)
        if size >= self.pack_from:
            first, data = self.pack(first, data)
        try:
            self.put_frame(first, data)
        except ClientDisconnected:
            self.break_off()
            raise
        if self.request.unsent is not None:
            self.hold()
        return size

    cdef taking pass_message(self, message) except TAKING_FAILED:
        if self.request.unsent is not None:   # another task is sending
            return FULL_BEFORE
        if not isinstance(message, dict):
            raise ResponseError(f"the message is {type(message).__name__}, not dict")
        size = self.put_message(<dict>message)
        return FULL_NOW if self.request.unsent is not None or self.turn_is_over(size) else SENT

    cdef object send_rest(self, message):
        return self.finish_send(message)

    # --------------------------------------------------------------- from the client

    def has_gone(self):
        return self.request.conn is NULL or x.front_is_gone(self.request.conn) or not self.awaits(x.FRONT_LEFT)

    cdef list take_messages(self, unsigned char *data, size_t size, uint64_t max_size):
        """The messages, if `data` are whole and nothing else: text or bytes in one frame each, not compressed.  Otherwise None,
        and `data` is as it was."""
        cdef size_t at = 0, begin, n, i
        cdef uint64_t total = 0
        cdef list messages = []
        while at < size:   # RFC 6455 5.2: FIN, no reserved bit; masked, and the length in as few bytes as possible
            if size - at < 6 or (data[at] != FINAL_TEXT and data[at] != FINAL_BINARY) or not data[at + 1] & 0x80:
                return None
            n = data[at + 1] & 0x7f
            begin = at + 6
            if n == 126:
                n = <size_t>data[at + 2] << 8 | data[at + 3]
                begin = at + 8
                if n < 126:
                    return None
            elif n == 127:
                return None
            if n > max_size or begin > size or size - begin < n:
                return None
            at = begin + n
        at = 0
        while at < size:
            n = data[at + 1] & 0x7f
            begin = at + 6
            if n == 126:
                n = <size_t>data[at + 2] << 8 | data[at + 3]
                begin = at + 8
            unmask(data + begin, n, data + begin - 4)
            if data[at] == FINAL_BINARY:
                messages.append({"type": "websocket.receive", "bytes": PyBytes_FromStringAndSize(<char *>data + begin,
                                                                                                <Py_ssize_t>n)})
            else:
                try:
                    text = PyUnicode_DecodeUTF8(<char *>data + begin, <Py_ssize_t>n, NULL)
                except UnicodeDecodeError:   # Python closes the WebSocket
                    unmask(data + begin, n, data + begin - 4)
                    mask_again(data, at)
                    return None
                messages.append({"type": "websocket.receive", "text": text})
            total += n
            at = begin + n
        self.read_size = total
        return messages

    cdef int follow(self, const unsigned char *data, size_t size) except -1:
        """Notes where `data`, which Python gets, ends."""
        cdef size_t part
        cdef unsigned length, i
        while size > 0:
            if self.lacks > 0:
                part = size if size < self.lacks else <size_t>self.lacks
                self.lacks -= part
                data += part
                size -= part
                continue
            self.header[self.has_header] = data[0]
            self.has_header += 1
            data += 1
            size -= 1
            if self.has_header < 2:
                continue
            length = self.header[1] & 0x7f
            part = 0 if length < 126 else 2 if length == 126 else 8
            if self.has_header == 2 + part + (4 if self.header[1] & 0x80 else 0):
                self.lacks = length if part == 0 else 0
                for i in range(<unsigned>part):
                    self.lacks = self.lacks << 8 | self.header[2 + i]
                self.has_header = 0
        return 0

    def read(self, size_t most=ROOM, uint64_t max_size=0):
        cdef Request request = self.request
        cdef char[ROOM] room
        cdef ssize_t n
        self.is_waiting = False
        while request.conn is not NULL:
            n = x.front_read(request.front._front, request.conn, room, most if most < ROOM else ROOM, False)
            if n == -EAGAIN:
                if not self.awaits(x.FRONT_READABLE | x.FRONT_LEFT):
                    continue
                self.is_waiting = True
                return None
            if n <= 0:
                break
            request.body_read += <uint64_t>n
            if x.front_is_dry(request.conn):
                self.is_waiting = self.awaits(x.FRONT_READABLE | x.FRONT_LEFT)
            if max_size > 0 and self.lacks == 0 and self.has_header == 0:
                messages = self.take_messages(<unsigned char *>room, <size_t>n, max_size)
                if messages is not None:
                    return messages
            self.follow(<unsigned char *>room, <size_t>n)
            return PyBytes_FromStringAndSize(room, n)
        return b""

    # ----------------------------------------------------------------- to the client

    cdef int pass_on(self, x.iovec *iov, int n) except -1:
        cdef size_t total = 0
        cdef int i
        for i in range(n):
            total += iov[i].iov_len
        try:
            send_all(self.request, iov, n, 0)
        except ClientDisconnected:
            self.abort()
            raise
        self.request.response_size += total
        if self.request.unsent is not None:
            self.awaits_room()
        return 0

    cdef int awaits_room(self) except -1:
        """Front.moved() will return this object when the client takes more, also if nobody calls flush() before."""
        if not self.awaits(x.FRONT_WRITABLE):
            self.flush()
        return 0

    cdef int must_be_open(self) except -1:
        if self.request.conn is NULL or not self.is_open:
            raise ClientDisconnected("the WebSocket is closed")
        if self.request.unsent is not None:
            raise RuntimeError("flush() has to take the rest of the last frame before")
        return 0

    cdef int put_payload(self, int first, const char *payload, Py_ssize_t length) except -1:
        cdef char[1024 + 10] room   # copying so little costs less than a second buffer in the system call
        cdef x.iovec[2] iov
        cdef uint64_t left = <uint64_t>length
        cdef int i, n_header = 2 if length < 126 else 4 if length < 65536 else 10
        cdef int n = 1
        self.must_be_open()
        room[0] = <char>first
        room[1] = <char>(length if length < 126 else 126 if length < 65536 else 127)
        for i in range(n_header - 1, 1, -1):
            room[i] = <char>(left & 255)
            left >>= 8
        iov[0].iov_base = room
        iov[0].iov_len = <size_t>n_header
        if length <= 1024:
            memcpy(room + n_header, payload, <size_t>length)
            iov[0].iov_len += <size_t>length
        else:
            iov[1].iov_base = <char *>payload
            iov[1].iov_len = <size_t>length
            n = 2
        return self.pass_on(iov, n)

    def put_frame(self, int first, data):
        cdef Py_buffer view
        cdef Py_ssize_t length
        cdef const char *text
        if isinstance(data, str):
            try:
                text = PyUnicode_AsUTF8AndSize(data, &length)
            except UnicodeEncodeError as error:
                raise ResponseError(f"the text of the message cannot be encoded: {error}") from None
            self.put_payload(first, text, length)
        elif type(data) is bytes:
            self.put_payload(first, PyBytes_AS_STRING(data), PyBytes_GET_SIZE(data))
        else:
            PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
            try:
                self.put_payload(first, <const char *>view.buf, view.len)
            finally:
                PyBuffer_Release(&view)

    def put_bytes(self, bytes data not None):
        cdef x.iovec iov
        self.must_be_open()
        iov.iov_base = PyBytes_AS_STRING(data)
        iov.iov_len = <size_t>PyBytes_GET_SIZE(data)
        self.pass_on(&iov, 1)

    def reserve(self, size_t size):
        if size > self.reserved:
            if not x.front_reserve(self.request.front._front, size - self.reserved):
                return False
        elif size < self.reserved:
            x.front_unreserve(self.request.front._front, self.reserved - size)
        self.reserved = size
        return True

    def end(self, bytes last not None=b"", bint abort=False):
        cdef Request request = self.request
        cdef x.iovec[2] iov
        cdef int n = 0
        self.is_open = self.is_waiting = False
        if request.conn is NULL:
            request.unsent = None
            self.record()
            return
        if request.unsent is not None:
            iov[n].iov_base = PyBytes_AS_STRING(request.unsent) + self.flushed
            iov[n].iov_len = <size_t>PyBytes_GET_SIZE(request.unsent) - self.flushed
            n += 1
        if last:
            iov[n].iov_base = PyBytes_AS_STRING(last)
            iov[n].iov_len = <size_t>PyBytes_GET_SIZE(last)
            n += 1
            request.response_size += <uint64_t>PyBytes_GET_SIZE(last)
        # What the socket does not take is left with the front, under write_timeout; or the client does not keep up.
        if n > 0 and not abort:
            abort = x.front_send(request.front._front, request.conn, iov, n, <size_t>-1, False) != c.FRONT_OK
        request.unsent = None
        self.flushed = 0
        finish_request(request, False, abort)
        self.record()
