# Mirrors access_record.h, in its order; the documentation is there.

from libc.stdint cimport int64_t, uint64_t

cdef extern from "http/access_record.h" nogil:
    enum:
        RECORD_MAX_SIZE

    ctypedef struct record_text:
        const char *at
        size_t len

    ctypedef struct record:
        int64_t when
        int64_t duration
        uint64_t received, sent
        unsigned status
        record_text method, path, client
        record_text agent, trace_id, span_id, request_id

    size_t record_json(const record *r, char *out)
