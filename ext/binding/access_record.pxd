# Mirrors access_record.h, in its order; the documentation is there.

from libc.stdint cimport int64_t, uint64_t

cdef extern from "http/access_record.h" nogil:
    enum:
        ACCESS_RECORD_MAX_SIZE

    enum access_record_schema:
        ACCESS_RECORD_OTEL
        ACCESS_RECORD_SCHEMAS

    ctypedef struct access_record_text:
        const char *at
        size_t len

    ctypedef struct access_record:
        int64_t when
        int64_t duration
        uint64_t received, sent
        unsigned status
        access_record_text method, path, client
        access_record_text listener, agent, trace_id, span_id, request_id
        access_record_text trace_prefix

    size_t access_record_json(const access_record *r, access_record_schema schema, char *out)
