# WSGI (PEP 3333): builds the environ in one pass, implements start_response, and runs one call of the application.

cdef enum:
    NAME_SLOTS = 1024   # a power of two, several times the number of names below
    NAME_MAX = 40

cdef struct known_name:
    uint8_t length
    char[NAME_MAX] text

cdef known_name[NAME_SLOTS] known
cdef list known_keys = [None] * NAME_SLOTS   # the environ key of each name; not changed after import


cdef inline unsigned name_hash(const char *text, size_t length) noexcept:
    # Distinguishes the names below; a collision costs one more comparison.
    return (<unsigned>(<unsigned char>text[0]) * 31 + <unsigned>(<unsigned char>text[length - 1]) * 7
            + <unsigned>(<unsigned char>text[length // 2]) * 131 + <unsigned>length * 1031) & (NAME_SLOTS - 1)


def _fill_known():
    cdef unsigned slot
    cdef bytes spelling
    names = (
        "Accept Accept-Charset Accept-Encoding Accept-Language Authorization Cache-Control Connection Content-Encoding "
        "Content-Length Content-Type Cookie DNT Date Expect Forwarded From Host If-Match If-Modified-Since "
        "If-None-Match If-Range If-Unmodified-Since Max-Forwards Origin Pragma Priority Proxy-Authorization "
        "Purpose Range Referer Sec-CH-UA Sec-CH-UA-Mobile Sec-CH-UA-Platform Sec-Fetch-Dest Sec-Fetch-Mode "
        "Sec-Fetch-Site Sec-Fetch-User Sec-GPC TE Trailer Transfer-Encoding Upgrade Upgrade-Insecure-Requests "
        "User-Agent Via X-Amzn-Trace-Id X-CSRF-Token X-Cloud-Trace-Context X-Forwarded-For X-Forwarded-Host "
        "X-Forwarded-Port X-Forwarded-Prefix X-Forwarded-Proto X-Real-IP X-Request-ID X-Requested-With traceparent "
        "tracestate baggage"
    ).split()
    for name in names:
        key = name.upper().replace("-", "_")
        if key not in ("CONTENT_TYPE", "CONTENT_LENGTH"):
            key = "HTTP_" + key
        for spelling in {name.encode(), name.lower().encode(), name.title().encode()}:
            slot = name_hash(spelling, len(spelling))
            while known[slot].length:
                slot = (slot + 1) & (NAME_SLOTS - 1)
            known[slot].length = <uint8_t>len(spelling)
            memcpy(known[slot].text, <const char *>spelling, len(spelling))
            known_keys[slot] = key


_fill_known()


cdef object environ_key(const char *text, size_t length):
    """HTTP_USER_AGENT for User-Agent; None for a name that must not become a variable: `A_B` and `A-B` would become the
    same one, which would circumvent a proxy's filter."""
    cdef unsigned slot = name_hash(text, length)
    if length < NAME_MAX:
        while known[slot].length:
            if known[slot].length == length and memcmp(known[slot].text, text, length) == 0:
                return known_keys[slot]
            slot = (slot + 1) & (NAME_SLOTS - 1)
    if memchr(text, c'_', length) is not NULL:
        return None
    name = text[:length].decode("latin-1").upper().replace("-", "_")
    return name if name in ("CONTENT_TYPE", "CONTENT_LENGTH") else "HTTP_" + name


cdef inline int hex_digit(char x) noexcept:
    if c'0' <= x <= c'9':
        return x - c'0'
    x |= 0x20
    return x - c'a' + 10 if c'a' <= x <= c'f' else -1


cdef str unquote(const char *text, size_t length):
    """Percent-decoded, as bytes in latin-1 (PEP 3333); invalid escapes stay unchanged."""
    cdef size_t i = 0, n = 0
    cdef int high, low
    cdef char *out
    if memchr(text, c'%', length) is NULL:
        return PyUnicode_DecodeLatin1(text, <Py_ssize_t>length, NULL)
    out = <char *>malloc(length)
    if out is NULL:
        raise MemoryError
    while i < length:
        if text[i] == c'%' and i + 2 < length:
            high = hex_digit(text[i + 1])
            low = hex_digit(text[i + 2])
            if high >= 0 and low >= 0:
                out[n] = <char>(high << 4 | low)
                n += 1
                i += 3
                continue
        out[n] = text[i]
        n += 1
        i += 1
    try:
        return PyUnicode_DecodeLatin1(out, <Py_ssize_t>n, NULL)
    finally:
        free(out)


cdef str decimal(unsigned value):
    """The same as str(value), in a third of the time."""
    cdef char[20] room
    cdef char *first = text_digits(room, value)
    return PyUnicode_DecodeLatin1(first, room + 20 - first, NULL)


cdef tuple method_names = (None, "GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH")


cdef dict make_environ(Request request, dict base):
    cdef const char *data = request.raw
    cdef http1.http1_head *head = &request.head
    cdef http1.http1_header *header
    cdef dict environ = PyDict_Copy(base)
    cdef Py_ssize_t names
    cdef int i
    for i in range(head.n_headers):
        header = &head.headers[i]
        key = environ_key(data + header.name.pos, header.name.len)
        if key is None:
            continue
        value = text_at(data, header.value)
        names = len(environ)
        former = <object>PyDict_SetDefault(environ, key, value)
        if len(environ) == names:   # RFC 9110 5.3; cookies are joined by semicolons (RFC 6265 5.4)
            environ[key] = f"{former}; {value}" if key == "HTTP_COOKIE" else f"{former},{value}"
    if head.form == http1.HTTP1_ABSOLUTE:
        environ["HTTP_HOST"] = text_at(data, head.authority)   # RFC 9112 3.2.2: from the target, not from the field
    if head.chunked and request.size >= 0:
        # Decoded already: the application gets a body with a length (RFC 9112 7.1.3), since most require one.
        environ.pop("HTTP_TRANSFER_ENCODING", None)
        environ["CONTENT_LENGTH"] = str(request.size)
    environ["REQUEST_METHOD"] = method_names[head.method_id] or text_at(data, head.method)
    target = text_at(data, head.target)
    if request.is_repeated:
        environ["pkg.repeated"] = True
    environ["RAW_URI"] = environ["REQUEST_URI"] = target
    # An absolute target without a path means the root (RFC 9112 3.2.1); PEP 3333 requires one of the two to be set.
    if head.path.len == head.target.len and memchr(data + head.path.pos, c'%', head.path.len) is NULL:
        environ["PATH_INFO"] = target
    else:
        environ["PATH_INFO"] = unquote(data + head.path.pos, head.path.len) if head.path.len else "/"
    environ["QUERY_STRING"] = text_at(data, head.query) if head.query.len else ""
    environ["SERVER_PROTOCOL"] = "HTTP/1.1" if head.minor else "HTTP/1.0"
    address, port = get_address(request)
    environ["REMOTE_ADDR"] = address
    environ["REMOTE_PORT"] = decimal(port)
    if request.scheme is not None:
        environ["wsgi.url_scheme"] = request.scheme
    environ["wsgi.input"] = get_body(request)
    return environ


class FileWrapper:
    """wsgi.file_wrapper: a file as a response body, sent by sendfile(2) if it is a file of the operating system."""

    def __init__(self, filelike, blksize=65536):
        self.filelike = filelike
        self.blksize = blksize
        if hasattr(filelike, "close"):
            self.close = filelike.close

    def __iter__(self):
        return self

    def __next__(self):
        data = self.filelike.read(self.blksize)
        if data:
            return data
        raise StopIteration


cdef object file_behind(filelike):
    """The file whose read() is that of the file-like object, or None if the bytes differ from the file's: gzip, for
    example, has the fileno() of the compressed file.  Proxies as in tempfile and Django return the file's own method."""
    read = getattr(filelike, "read", None)
    source = getattr(getattr(read, "__wrapped__", read), "__self__", None)
    if type(source) is io.BufferedReader or type(source) is io.BufferedRandom:
        return source if type(source.raw) is io.FileIO else None
    return source if type(source) is io.FileIO else None


cdef bint send_wrapped(Response response, wrapper) except -1:
    """Whether the file was sent by sendfile."""
    if response.sent and (response.length < 0 or response.chunked):
        return False   # write() has started a body of unknown length
    try:
        source = file_behind(wrapper.filelike)
        if source is None:
            return False
        fd = source.fileno()
        info = os.fstat(fd)
        offset = source.tell()
    except (AttributeError, OSError, ValueError):
        return False
    # Files in /proc have size 0 and still have content.
    if not stat.S_ISREG(info.st_mode) or info.st_size == 0 or info.st_size < offset:
        return False
    response.send_file(fd, offset, info.st_size - offset)
    return True


@cython.freelist(16)
@cython.final
cdef class StartResponse:
    """start_response of PEP 3333."""

    cdef Response response

    def __call__(self, status, headers, exc_info=None):
        cdef Py_ssize_t length
        cdef const char *line
        cdef Response response = self.response
        if exc_info is not None:
            try:
                if response.sent:
                    raise exc_info[1].with_traceback(exc_info[2])
            finally:
                exc_info = None
        elif response.status != 0:
            raise ResponseError("start_response called twice without exc_info")
        line = latin1(status, &length, b"status")
        if length < 3 or not (c'2' <= line[0] <= c'9' and c'0' <= line[1] <= c'9' and c'0' <= line[2] <= c'9'
                              and (length == 3 or line[3] == c' ')):
            raise ResponseError(f"invalid status {status!r}")
        response.begin((line[0] - c'0') * 100 + (line[1] - c'0') * 10 + line[2] - c'0', line, length)
        for name, value in headers:
            response.put_header(name, value)
        if response.self_framed:
            raise ResponseError("Transfer-Encoding is the server's to set (PEP 3333)")
        return response.write


cdef class WSGIHandler:
    """A handler with the parameters (request, client_address, server) that runs a WSGI application."""

    cdef readonly object app
    cdef readonly dict environ   # copied for the environ of each request
    cdef readonly tuple others   # the same for requests of listeners after the first, as far as they are known

    def __init__(self, app, dict environ not None, addresses=()):
        self.app = app
        # With all keys that make_environ() sets, and one more: a copy keeps the capacity, so it need not grow.
        self.environ = environ | dict.fromkeys(
            ("REQUEST_METHOD", "RAW_URI", "REQUEST_URI", "PATH_INFO", "QUERY_STRING", "SERVER_PROTOCOL", "REMOTE_ADDR",
             "REMOTE_PORT", "wsgi.input", "HTTP_HOST"), "")
        del self.environ["HTTP_HOST"]
        self.others = tuple([self.environ | {"SERVER_NAME": name, "SERVER_PORT": str(port)} for name, port in addresses])

    def __call__(self, Request request not None, client_address, server):
        serve_wsgi(request, self)
        finish_request(request, True, False)


cdef int serve_wsgi(Request request, WSGIHandler handler) except -1:
    """Runs a WSGI application for one request.  Raises what the application raises."""
    cdef Response response = Response.__new__(Response, request)
    cdef StartResponse start = StartResponse.__new__(StartResponse)
    cdef dict base = handler.environ
    if 0 < request.listener <= len(handler.others): # it may have been made without knowing of all listeners
        base = handler.others[request.listener - 1]
    cdef dict environ = make_environ(request, base)
    start.response = response
    result = handler.app(environ, start)
    try:
        if (type(result) is list or type(result) is tuple) and len(result) == 1 and not response.sent:
            data = result[0]
            if type(data) is not bytes:
                raise ResponseError(f"the response body is {type(data).__name__}, not bytes")
            response.emit(PyBytes_AS_STRING(data), PyBytes_GET_SIZE(data), True)
        elif type(result) is not FileWrapper or not send_wrapped(response, result):
            for data in result:
                if type(data) is not bytes:
                    raise ResponseError(f"the response body is {type(data).__name__}, not bytes")
                if PyBytes_GET_SIZE(data) > 0:
                    response.emit(PyBytes_AS_STRING(data), PyBytes_GET_SIZE(data), False)
                    if response.bodiless:
                        break   # nobody gets the rest, and it may be endless
            response.end()
    finally:
        close = getattr(result, "close", None)
        if close is not None:
            close()
    return 0
