# Mirrors http1.h, in its order; the documentation is there.

from libc.stdint cimport int8_t, uint8_t, uint16_t, uint64_t


cdef extern from "http/http1.h" nogil:
    enum:
        HTTP1_MAX_HEADERS
        HTTP1_MAX_HEAD_SIZE
        HTTP1_PARTIAL

    enum http1_error:
        HTTP1_OK
        HTTP1_ERROR_END
        HTTP1_E_REQUEST_LINE
        HTTP1_E_EMPTY_LINES
        HTTP1_E_METHOD
        HTTP1_E_METHOD_SIZE
        HTTP1_E_TARGET
        HTTP1_E_TARGET_SIZE
        HTTP1_E_VERSION
        HTTP1_E_VERSION_MAJOR
        HTTP1_E_LINE_END
        HTTP1_E_FOLDED_LINE
        HTTP1_E_HEADER_NAME
        HTTP1_E_HEADER_VALUE
        HTTP1_E_HEADER_COUNT
        HTTP1_E_HEAD_SIZE
        HTTP1_E_HOST
        HTTP1_E_HOST_MISSING
        HTTP1_E_HOST_REPEATED
        HTTP1_E_CONTENT_LENGTH
        HTTP1_E_CONTENT_LENGTH_REPEATED
        HTTP1_E_TRANSFER_ENCODING
        HTTP1_E_TRANSFER_ENCODING_1_0
        HTTP1_E_TRANSFER_CODING
        HTTP1_E_FRAMING
        HTTP1_E_EXPECTATION
        HTTP1_E_CHUNK_SIZE
        HTTP1_E_CHUNK_EXTENSION
        HTTP1_E_CHUNK_EXTENSION_SIZE
        HTTP1_E_CHUNK_END
        HTTP1_E_TRAILER
        HTTP1_E_TRAILER_SIZE

    enum http1_method:
        HTTP1_OTHER
        HTTP1_GET
        HTTP1_HEAD
        HTTP1_POST
        HTTP1_PUT
        HTTP1_DELETE
        HTTP1_CONNECT
        HTTP1_OPTIONS
        HTTP1_TRACE
        HTTP1_PATCH

    enum http1_form:
        HTTP1_ORIGIN
        HTTP1_ABSOLUTE
        HTTP1_AUTHORITY
        HTTP1_ASTERISK

    ctypedef struct http1_span:
        uint16_t pos
        uint16_t len

    ctypedef struct http1_header:
        http1_span name
        http1_span value

    ctypedef struct http1_head:
        http1_span method
        http1_span target
        http1_span path
        http1_span query
        http1_span authority
        http1_span host
        uint64_t content_length
        uint8_t method_id
        uint8_t form
        uint8_t minor
        bint has_length
        bint chunked
        bint keep_alive
        bint upgrade
        bint expect_continue
        bint has_query
        bint bad_host
        uint16_t n_headers
        http1_header headers[HTTP1_MAX_HEADERS]

    ctypedef struct http1_limits:
        uint16_t max_head_size
        uint16_t max_target_size
        uint16_t max_headers

    int http1_parse_head(const char *buf, size_t len, size_t seen, const http1_limits *limits, http1_head *head)

    int http1_error_status(int error)
    const char *http1_error_name(int error)
    const char *http1_error_text(int error)

    ctypedef struct http1_chunked:
        uint64_t left
        uint16_t extension_size
        uint16_t trailer_size
        uint8_t state
        uint8_t n_digits
        uint8_t n_trailers
        int8_t error

    void http1_chunked_init(http1_chunked *d)
    int http1_chunked_decode(http1_chunked *d, const char *src, size_t *src_len, char *dst, size_t *dst_len)
