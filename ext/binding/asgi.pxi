# ASGI (HTTP): builds the scope in one pass, and gives and takes the messages of one request; nothing here waits.

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


cdef str decode_path(const char *text, size_t length):
    """Percent-decoded, then UTF-8; what is none becomes U+FFFD."""
    cdef size_t i
    for i in range(length):
        if text[i] == c'%' or <unsigned char>text[i] >= 128:
            return unquote(text, length).encode("latin-1").decode("utf-8", "replace")
    return PyUnicode_DecodeLatin1(text, <Py_ssize_t>length, NULL)


cdef dict make_scope(Request request, dict base, str root_path):
    """`base`: what is the same for all requests of a listener."""
    cdef const char *data = request.raw
    cdef http1.http1_head *head = &request.head
    cdef http1.http1_header *header
    cdef dict scope = PyDict_Copy(base)
    cdef list headers = []
    cdef bytes name, raw_path
    cdef str path
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
    scope["asgi"] = {"version": "3.0", "spec_version": "2.5"}
    scope["http_version"] = "1.1" if head.minor else "1.0"
    scope["method"] = method_names[head.method_id] or text_at(data, head.method)
    scope["scheme"] = "http" if request.scheme is None else request.scheme
    scope["path"] = path
    scope["raw_path"] = raw_path
    scope["query_string"] = bytes_at(data, head.query) if head.query.len else b""
    scope["root_path"] = root_path
    scope["headers"] = headers
    client = get_address(request)
    scope["client"] = client if client[0] else None
    scope["extensions"] = {}
    return scope


cdef class Exchange:
    """The messages of one request.

    next_message() and flush() say whether something has to be waited for; then Front.moved() returns this object as soon as
    it is worth another try.  The connection is given back with the end of the response, whatever the application does
    after it.
    """

    cdef readonly Request request
    cdef Response response
    cdef size_t flushed            # of request.unsent
    cdef readonly uint64_t taken   # bytes that had to wait and that the client has taken
    cdef bint body_given           # the end of the request's body
    cdef readonly bint has_ended   # the application has sent its last message
    cdef readonly bint is_reading  # next_message() waits for more of the body
    cdef bint dismissed            # the application is told that the client has left, although it has not
    cdef readonly bint has_left    # the application has been told that the client has left, before the end of the response
    cdef public bint is_recorded   # free for the host

    def __cinit__(self, Request request not None, *args):
        if request.front is None:
            raise ValueError("the request has no connection")
        request.never_waits = True
        self.request = request

    def scope(self, dict base not None, str root_path not None=""):
        """A new scope.  `base`: its items that are the same for all requests of a listener."""
        return make_scope(self.request, base, root_path)

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
            data = PyBytes_FromStringAndSize(NULL, 65536)
            n = x.front_read(front, request.conn, PyBytes_AS_STRING(data), 65536, False)
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
            return {"type": "http.request", "body": data[:n], "more_body": not self.body_given}
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
        self.finish()
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

    # -------------------------------------------------------------- response

    cdef int must_be_there(self) except -1:
        if self.request.conn is NULL:
            if self.has_ended:
                raise ResponseError("a message was sent after the end of the response")
            raise ClientDisconnected("the client has closed the connection")
        return 0

    def put(self, given):
        """Takes a message of send().  is_full then says whether flush() has to take the rest; until it has, there must not
        be another message."""
        cdef Response response = self.response
        cdef Py_buffer view
        if not isinstance(given, dict):
            raise ResponseError(f"the message is {type(given).__name__}, not dict")
        cdef dict message = <dict>given   # or a class of its own, which Cython's own check does not allow
        kind = message.get("type")
        if self.has_ended:
            raise ResponseError("a message was sent after the end of the response")
        if kind == "http.response.body":
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
            if last and self.request.unsent is None:
                self.finish()
        elif kind == "http.response.start":
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
        return None

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
                self.finish()
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
        """Gives the connection back.  A response that is not complete is cut off."""
        if self.request.unsent is not None or self.request.status == 0:
            self.abort()
        else:
            finish_request(self.request, True, not self.request.answered)
