# A response: builds the head once, frames the body, and checks everything before a byte is sent.

cdef bint[256] token_char   # RFC 9110 5.6.2
cdef bint[256] value_char   # RFC 9110 5.5: VCHAR, SP, HTAB, obs-text
for _i in range(256):
    token_char[_i] = chr(_i) in "!#$%&'*+-.^_`|~0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
    value_char[_i] = (_i >= 32 and _i != 127) or _i == 9

cdef extern from "binding/response.h":
    enum:
        DATE_LINE_SIZE
    const char *response_date() nogil


cdef const char *latin1(object text, Py_ssize_t *length, const char *what) except NULL:
    """The bytes of a latin-1 str, without a copy."""
    if not isinstance(text, str):
        raise ResponseError(f"{what.decode()} is {type(text).__name__}, not str")
    if PyUnicode_KIND(text) != PyUnicode_1BYTE_KIND:
        raise ResponseError(f"{what.decode()} contains characters outside latin-1")
    length[0] = PyUnicode_GET_LENGTH(text)
    return <const char *>PyUnicode_DATA(text)


cdef str quoted(const char *text, Py_ssize_t length):
    return repr(PyUnicode_DecodeLatin1(text, length, NULL))


@cython.freelist(16)
@cython.final
cdef class Response:
    """One response to one request.

    start(), add_header() ..., then write() any number of times, then end().  The head goes out with the first part
    of the body.  Without Content-Length the body is chunked (HTTP/1.1) or ends with the connection (HTTP/1.0); if
    all of it is known at once it gets a length.  ResponseError: what was asked for cannot be said in HTTP, and
    nothing of it has been sent.
    """

    cdef readonly Request request
    cdef char *head
    cdef size_t head_len, head_cap
    cdef readonly int status
    cdef int64_t length       # of Content-Length; -1 if there is none
    cdef int64_t written
    cdef bint has_date, has_request_id, self_framed, chunked, bodiless, is_old
    cdef bint closes          # the connection is closed after this response
    cdef bint closed          # the head cannot be changed any more: it has been sent, or was invalid
    cdef readonly bint sent   # the head has been sent
    cdef readonly bint ended

    def __cinit__(self, Request request not None):
        if request.front is None:
            raise ValueError("the request has no connection")
        self.request = request
        self.length = -1

    def __dealloc__(self):
        free(self.head)

    # ------------------------------------------------------------------ head

    cdef int put(self, const char *text, size_t length) except -1:
        cdef size_t cap
        cdef char *more
        if self.head_len + length > self.head_cap:
            cap = self.head_cap * 2 or 1024
            while cap < self.head_len + length:
                cap *= 2
            if cap > 1 << 20:
                raise ResponseError("the head of the response is larger than 1 MiB")
            more = <char *>realloc(self.head, cap)
            if more is NULL:
                raise MemoryError
            self.head = more
            self.head_cap = cap
        memcpy(self.head + self.head_len, text, length)
        self.head_len += length
        return 0

    cdef int begin(self, int status, const char *line, Py_ssize_t length) except -1:
        """`line`: status code and reason phrase."""
        cdef Py_ssize_t i
        if self.sent:
            raise ResponseError("the handler sent a second response to the same request")
        for i in range(length):
            if not value_char[<unsigned char>line[i]]:
                raise ResponseError("the reason phrase contains a control character")
        self.head_len = 0
        self.length = -1
        self.written = 0
        self.has_date = self.has_request_id = self.self_framed = self.chunked = self.closed = self.closes = False
        self.status = status
        self.bodiless = status == 204 or status == 304 or self.request.head.method_id == http1.HTTP1_HEAD
        self.put(b"HTTP/1.1 ", 9)
        self.put(line, length)
        if length == 3:
            self.put(b" ", 1)   # RFC 9112 4: the space is required even without a reason phrase
        self.put(b"\r\n", 2)
        return 0

    def start(self, int status, str reason="", bint is_old=False):
        """`is_old`: an HTTP/1.0 response, after which the connection is closed."""
        cdef Py_ssize_t length
        cdef const char *text
        if not 200 <= status <= 999:
            raise ResponseError(f"{status} is not a final status code")
        line = f"{status} {reason}"
        text = latin1(line, &length, b"reason phrase")
        self.begin(status, text, length)
        self.is_old = is_old
        if is_old:
            self.head[7] = c'0'
            self.closes = True

    def add_header(self, name, value):
        self.put_header(name, value)

    cdef int put_header(self, name, value) except -1:
        # For builds without an interpreter lock: a head that is being sent must not move.
        with cython.critical_section(self):
            self.put_field(name, value)
        return 0

    cdef int put_field(self, name, value) except -1:
        cdef Py_ssize_t n, v
        cdef const char *a = latin1(name, &n, b"header name")
        cdef const char *b = latin1(value, &v, b"header value")
        return self.put_checked(a, n, b, v, False)

    cdef int put_checked(self, const char *a, Py_ssize_t n, const char *b, Py_ssize_t v, bint frames) except -1:
        """`frames`: the body is framed here, whatever transfer coding the application names."""
        cdef Py_ssize_t i
        if self.status == 0:
            raise ResponseError("a header was sent before the status line")
        if self.closed:
            raise ResponseError(f"header {quoted(a, n)} was sent after the head of the response")
        for i in range(n):
            if not token_char[<unsigned char>a[i]]:
                raise ResponseError(f"invalid character in header name {quoted(a, n)}")
        if n == 0:
            raise ResponseError("empty header name")
        for i in range(v):
            if not value_char[<unsigned char>b[i]]:
                raise ResponseError(f"the value of header {quoted(a, n)} contains a control character")
        if n == 14 and text_is_name(a, n, b"content-length", 14):
            self.set_length(b, v)
            return 0
        if n == 10 and text_is_name(a, n, b"connection", 10):
            # The server decides on persistence; an application may only end it (RFC 9112 9.6).
            if b"close" in b[:v].lower():
                self.closes = True
            return 0
        if n == 10 and text_is_name(a, n, b"keep-alive", 10):
            return 0
        if n == 4 and text_is_name(a, n, b"date", 4):
            self.has_date = True
        elif n == 12 and text_is_name(a, n, b"x-request-id", 12):
            self.has_request_id = True
        elif n == 17 and text_is_name(a, n, b"transfer-encoding", 17):
            if frames:
                return 0
            if not text_is_name(b, v, b"chunked", 7):
                raise ResponseError(f"transfer coding {quoted(b, v)} is not supported")
            # The application frames its body itself.  As this cannot be checked, the connection is closed after it.
            self.self_framed = self.closes = True
        self.put(a, n)
        self.put(b": ", 2)
        self.put(b, v)
        self.put(b"\r\n", 2)
        return 0

    cdef int set_length(self, const char *text, Py_ssize_t length) except -1:
        cdef int64_t value = 0
        cdef Py_ssize_t i
        if self.length >= 0:
            raise ResponseError("two Content-Length headers")
        for i in range(length):
            if not c'0' <= text[i] <= c'9' or i > 17:
                raise ResponseError("Content-Length is not a number")
            value = value * 10 + (text[i] - c'0')
        if length == 0:
            raise ResponseError("Content-Length is empty")
        self.length = value
        return 0

    cdef int put_request_id(self, bytes value) except -1:
        cdef const char *text = PyBytes_AS_STRING(value)
        cdef Py_ssize_t i, length = PyBytes_GET_SIZE(value)
        for i in range(length):
            if not value_char[<unsigned char>text[i]]:
                raise ResponseError("the request id contains a control character")
        self.put(b"X-Request-Id: ", 14)
        self.put(text, length)
        self.put(b"\r\n", 2)
        return 0

    cdef int close_head(self) except -1:
        """Completes the head: framing, Date, Connection, blank line."""
        cdef Request r = self.request
        cdef x.front_conn *conn = r.conn
        cdef char[20] room
        cdef char *first
        if self.status == 0:
            raise ResponseError("the application has not started a response")
        if self.self_framed and self.length >= 0:
            raise ResponseError("both Content-Length and Transfer-Encoding")
        if self.length >= 0 and self.status != 204:       # RFC 9110 8.6
            self.put(b"Content-Length: ", 16)
            first = text_digits(room, <uint64_t>self.length)
            self.put(first, room + 20 - first)
            self.put(b"\r\n", 2)
        elif self.length < 0 and not self.bodiless and not self.self_framed:
            if r.head.minor == 0 or self.is_old:
                self.closes = True                        # the body ends with the connection
            else:
                self.put(b"Transfer-Encoding: chunked\r\n", 28)
                self.chunked = True
        if not self.has_date:
            self.put(response_date(), DATE_LINE_SIZE)
        if r.request_id is not None and not self.has_request_id:
            self.put_request_id(r.request_id)
        if conn is not NULL and not x.front_begin_response(r.front._front, conn):
            self.closes = True
        if not r.keep_alive or c.front_is_draining(r.front._front):
            self.closes = True
        if self.closes:
            self.put(b"Connection: close\r\n", 19)
        elif r.head.minor == 0:
            self.put(b"Connection: keep-alive\r\n", 24)
        self.put(b"\r\n", 2)
        return 0

    # ------------------------------------------------------------------ body

    cdef int emit(self, const char *data, Py_ssize_t length, bint last) except -1:
        """Sends the head, unless it has been sent, and data; `last`: also the end of the body."""
        cdef x.iovec[4] iov
        cdef char[20] size_line
        cdef int n = 0, i
        cdef Py_ssize_t left, written
        cdef bint whole
        if self.ended:
            raise ResponseError("data was written after the end of the response")
        if not self.sent:
            if self.closed:
                raise ResponseError("the response was invalid and has not been sent; a new one must be started")
            # A response that cannot have a body has no length to check (RFC 9110 8.6).
            if last and self.length < 0 and not self.self_framed and not (self.bodiless and length == 0):
                self.length = length
            if self.length >= 0 and length > self.length and not self.bodiless:
                raise ResponseError(f"the body has {length} bytes, but Content-Length is {self.length}")
            with cython.critical_section(self):
                self.closed = True
            self.close_head()
            iov[n].iov_base = self.head
            iov[n].iov_len = self.head_len
            n += 1
        written = self.written   # if another thread is sending, this one is refused and has written nothing
        if length > 0 and not self.bodiless:
            if self.length >= 0 and self.written + length > self.length:
                raise ResponseError(f"the body is longer than its Content-Length of {self.length}")
            if n == 1 and length <= 8192 and not self.chunked:
                # Copying so little costs less than a second buffer in the system call.
                self.put(data, length)
                iov[0].iov_base = self.head
                iov[0].iov_len = self.head_len
                written += length
                length = 0
            elif self.chunked:
                i = 20
                size_line[18] = c'\r'
                size_line[19] = c'\n'
                i = 18
                left = length
                while left > 0:
                    i -= 1
                    size_line[i] = b"0123456789abcdef"[left & 15]
                    left >>= 4
                iov[n].iov_base = &size_line[i]
                iov[n].iov_len = 20 - i
                n += 1
            if length > 0:
                iov[n].iov_base = <char *>data
                iov[n].iov_len = length
                n += 1
                written += length
        if self.chunked:
            if length > 0 and last:
                iov[n].iov_base = <char *>b"\r\n0\r\n\r\n"
                iov[n].iov_len = 7
                n += 1
            elif length > 0:
                iov[n].iov_base = <char *>b"\r\n"
                iov[n].iov_len = 2
                n += 1
            elif last:
                iov[n].iov_base = <char *>b"0\r\n\r\n"
                iov[n].iov_len = 5
                n += 1
        if last and not self.bodiless and 0 <= self.length != written:
            # Only a response to HEAD or a 304 may have a Content-Length without a body.
            self.ended = self.sent
            raise ResponseError(f"the body has {written} bytes, but Content-Length is {self.length}")
        whole = last or (self.length >= 0 and written == self.length)
        self.sent = True
        if self.closes:
            self.request.keep_alive = False
        self.request.status = self.status
        if n > 0:
            send_all(self.request, iov, n, <size_t>-1 if whole else 0)
        self.written = written
        self.request.answered = whole or self.bodiless
        self.request.response_size = self.written
        self.ended = last
        return 0

    def write(self, data):
        """`data`: any contiguous buffer, with items of any type, as for socket.sendall()."""
        cdef Py_buffer view
        if type(data) is bytes:
            if PyBytes_GET_SIZE(data) > 0:
                self.emit(PyBytes_AS_STRING(data), PyBytes_GET_SIZE(data), False)
            return
        PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
        try:
            if view.len > 0:
                self.emit(<const char *>view.buf, view.len, False)
        finally:
            PyBuffer_Release(&view)

    def flush(self):
        """Sends the head, unless it has been sent."""
        if not self.sent:
            self.emit(NULL, 0, False)

    def end(self, bytes data=b""):
        """Sends the last part of the body, and ends the response."""
        if not self.ended:
            self.emit(PyBytes_AS_STRING(data), PyBytes_GET_SIZE(data), True)

    def send_file(self, int fd, int64_t offset, int64_t count):
        """Sends the rest of the response by sendfile(2): `count` bytes of a regular file from `offset`."""
        cdef c.front *front
        cdef x.front_conn *conn
        cdef int rv
        if self.length < 0 and self.written == 0 and not self.sent and not self.self_framed:
            self.length = count
        if self.length >= 0 and count > self.length - self.written:
            count = self.length - self.written
        if not self.sent:
            self.emit(NULL, 0, False)
        if self.bodiless:
            self.ended = True
            return
        if self.chunked or self.length < 0:
            raise ResponseError("send_file requires a known length")
        front = self.request.front._front
        conn = enter(self.request, WRITING)
        with nogil:
            rv = x.front_send_file(front, conn, fd, offset, count, True)
        leave(self.request, WRITING)
        if rv == -EALREADY:
            raise ResponseError("data was written after the end of the response")
        if rv == -EIO or rv == -EINVAL:
            raise ResponseError(f"the file cannot be read, or is shorter than the Content-Length of {self.length}")
        if rv < 0:
            raise ClientDisconnected("the client has closed the connection or does not read")
        self.written += count
        self.request.response_size = self.written
        if self.written != self.length:
            raise ResponseError(f"the body has {self.written} bytes, but Content-Length is {self.length}")
        self.request.answered = self.ended = True
