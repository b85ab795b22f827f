# WebSockets: the switch to raw bytes, frames of data on their way to the client, and simple ones from it; nothing here waits.
# All other frames from the client, and the rules of the protocol, are left to Python.

cdef enum:
    ROOM = 65536   # bytes of one read


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


cdef class Channel(Exchange):
    """An exchange that may become a connection of raw bytes, by 101 (Switching Protocols)."""

    cdef readonly bint is_open      # 101 has been passed to the front, and the connection has not been given back
    cdef public bint is_waiting     # Front.moved() will return this object when there is more to read
    cdef readonly size_t reserved   # bytes of its messages that count against buffer_size
    cdef readonly uint64_t read_size   # bytes of the messages that read() has returned last
    # Where the bytes that are left to Python stand: their last frame's payload lacks so much, or of its header there is so much.
    cdef uint64_t lacks
    cdef unsigned char[14] header
    cdef unsigned has_header

    def begin(self):
        """The scope."""
        cdef dict scope = Exchange.begin(self)
        del scope["method"]
        scope["type"] = "websocket"
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
            if size - at < 6 or (data[at] != 0x81 and data[at] != 0x82) or not data[at + 1] & 0x80:
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
            if data[at] == 0x82:
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
