# Renders the access record of a request as a line of JSON.

# There is one log, so these are the process's.
cdef r.access_record_schema access_schema = r.ACCESS_RECORD_OTEL
cdef str access_trace_prefix = ""


def set_access_schema(unsigned number, str trace_prefix not None):
    global access_schema, access_trace_prefix
    if number >= r.ACCESS_RECORD_SCHEMAS:
        raise ValueError(f"no schema of access records has the number {number}")
    access_schema = <r.access_record_schema>number
    access_trace_prefix = trace_prefix


cdef inline r.access_record_text text_of(const char *data, http1.http1_span span) noexcept:
    cdef r.access_record_text text
    text.at = data + span.pos
    text.len = span.len
    return text


cdef inline bint put_text(r.access_record_text *out, text) except -1:
    """False if a character does not fit into a byte."""
    if not isinstance(text, str) or PyUnicode_KIND(text) != PyUnicode_1BYTE_KIND:
        return False
    out.at = <const char *>PyUnicode_DATA(text)
    out.len = <size_t>PyUnicode_GET_LENGTH(text)
    return True


cdef bytes render_access(Request request):
    cdef char[r.ACCESS_RECORD_MAX_SIZE] out
    cdef const char *data = request.raw
    cdef const char *query
    cdef r.access_record record
    cdef timespec now
    cdef http1.http1_header *agent
    cdef size_t n
    memset(&record, 0, sizeof(record))
    clock_gettime(CLOCK_REALTIME, &now)
    record.when = <int64_t>now.tv_sec * 1_000_000_000 + now.tv_nsec
    record.duration = c.front_now() - request.arrived
    record.received = received_size(request)
    record.sent = request.response_size
    record.status = <unsigned>request.status
    record.method = text_of(data, request.head.method)
    record.path = text_of(data, request.head.target)
    query = <const char *>memchr(record.path.at, c'?', record.path.len)
    if query is not NULL:   # it may contain secrets
        record.path.len = <size_t>(query - record.path.at)
    agent = find_header(request, b"user-agent", 10)
    if agent is not NULL:
        record.agent = text_of(data, agent.value)
    address, _ = get_address(request)
    if request.names_listener and not put_text(&record.listener, request.listener_name):
        return None
    ids = ("", "", "") if request.context is None else request.context
    if type(ids) is not tuple or len(ids) != 3:
        return None
    trace_id, span_id, request_id = ids
    if not (put_text(&record.client, address) and put_text(&record.trace_id, trace_id)
            and put_text(&record.span_id, span_id) and put_text(&record.request_id, request_id)):
        return None
    if not put_text(&record.trace_prefix, access_trace_prefix):
        return None
    n = r.access_record_json(&record, access_schema, out)
    return PyBytes_FromStringAndSize(out, <Py_ssize_t>n) if n > 0 else None
