/*
 * http1.h - reading HTTP/1.1: the head of a request, and a chunked body.
 * Input: bytes.  Output: spans, "more bytes needed", or an error.
 *
 * Theory of operation
 * -------------------
 * Nothing here does I/O, allocates memory, copies data or keeps hidden state.  A
 * head is parsed in place: the result consists of spans into the caller's
 * buffer, which must stay valid as long as they are used.  No byte past
 * buf + len is ever read, so the buffer needs no terminator and no padding.
 *
 *      bytes --> http1_parse_head() --> >0  a head of that many bytes
 *        ^                          --> 0   HTTP1_PARTIAL: read on, call again
 *        `------- read more <----------'
 *                                   --> <0  an error: respond, then close
 *
 * The parser is strict (RFC 9112, and RFC 9110 for the meaning of fields).
 * Input that two readers of a connection could interpret differently is refused,
 * not repaired: bare CR or LF, folded lines, space before a colon, more than one
 * length or coding.  Only this file decides where the body ends: a caller looks
 * at `chunked`, `has_length` and `content_length`, never at the fields.
 *
 * The result depends only on the bytes, not on how they were split into reads.
 * The reads only affect when it is found: an error is found at the latest when
 * its line ends or the number of bytes has doubled, so that a head that arrives
 * byte by byte costs a bounded number of passes.
 *
 * Threads: no function has state; all of them are safe to call from any thread.
 *
 * This file includes no Python header, and must not.
 */
#ifndef HTTP1_H
#define HTTP1_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define HTTP1_MAX_HEADERS 128
#define HTTP1_MAX_HEAD_SIZE 65535 /* so that spans fit into 16 bits */
#define HTTP1_PARTIAL 0

/* X(NAME, status, text): HTTP1_E_NAME is -1, -2, ... in this order; the text may be sent to the peer. */
#define HTTP1_ERRORS(X)                                                        \
    X(REQUEST_LINE, 400, "malformed request line")                             \
    X(EMPTY_LINES, 400, "too many empty lines before the request")             \
    X(METHOD, 400, "invalid method")                                           \
    X(METHOD_SIZE, 501, "method too long")                                     \
    X(TARGET, 400, "invalid request target")                                   \
    X(TARGET_SIZE, 414, "request target too long")                             \
    X(VERSION, 400, "malformed HTTP version")                                  \
    X(VERSION_MAJOR, 505, "HTTP version not supported")                        \
    X(LINE_END, 400, "line not ended by CRLF")                                 \
    X(FOLDED_LINE, 400, "folded header line")                                  \
    X(HEADER_NAME, 400, "invalid header name")                                 \
    X(HEADER_VALUE, 400, "invalid header value")                               \
    X(HEADER_COUNT, 431, "too many headers")                                   \
    X(HEAD_SIZE, 431, "headers too large")                                     \
    X(HOST, 400, "invalid Host")                                               \
    X(HOST_MISSING, 400, "Host missing")                                       \
    X(HOST_REPEATED, 400, "more than one Host")                                \
    X(CONTENT_LENGTH, 400, "invalid Content-Length")                           \
    X(CONTENT_LENGTH_REPEATED, 400, "more than one Content-Length")            \
    X(TRANSFER_ENCODING, 400, "invalid Transfer-Encoding")                     \
    X(TRANSFER_ENCODING_1_0, 400, "Transfer-Encoding in HTTP/1.0")             \
    X(TRANSFER_CODING, 501, "transfer coding not supported")                   \
    X(FRAMING, 400, "both Content-Length and Transfer-Encoding")               \
    X(EXPECTATION, 417, "expectation not supported")                           \
    X(CHUNK_SIZE, 400, "invalid chunk size")                                   \
    X(CHUNK_EXTENSION, 400, "invalid chunk extension")                         \
    X(CHUNK_EXTENSION_SIZE, 400, "chunk extensions too large")                 \
    X(CHUNK_END, 400, "chunk not ended by CRLF")                               \
    X(TRAILER, 400, "invalid trailer")                                         \
    X(TRAILER_SIZE, 431, "trailers too large")

enum http1_error {
    HTTP1_OK = 0,
#define HTTP1_ORDINAL(name, status, text) HTTP1_ORDINAL_##name,
    HTTP1_ERRORS(HTTP1_ORDINAL)
#undef HTTP1_ORDINAL
    HTTP1_ERROR_END, /* one more than the number of errors */
#define HTTP1_CODE(name, status, text) HTTP1_E_##name = -HTTP1_ORDINAL_##name,
    HTTP1_ERRORS(HTTP1_CODE)
#undef HTTP1_CODE
};

enum http1_method {
    HTTP1_OTHER, /* any other token; methods are case-sensitive (RFC 9110 9.1) */
    HTTP1_GET,
    HTTP1_HEAD,
    HTTP1_POST,
    HTTP1_PUT,
    HTTP1_DELETE,
    HTTP1_CONNECT,
    HTTP1_OPTIONS,
    HTTP1_TRACE,
    HTTP1_PATCH,
};

/* The forms of a request target (RFC 9112 3.2). */
enum http1_form {
    HTTP1_ORIGIN,    /* /path?query */
    HTTP1_ABSOLUTE,  /* http://host/path?query */
    HTTP1_AUTHORITY, /* host:port, only with CONNECT */
    HTTP1_ASTERISK,  /* *, only with OPTIONS */
};

/* A place in the buffer that was parsed. */
typedef struct {
    uint16_t pos, len;
} http1_span;

typedef struct {
    http1_span name, value; /* the value without surrounding white space */
} http1_header;

/* A parsed head, valid only after http1_parse_head() has returned a length.  After an error only `method_id` is valid, as
 * far as it had been read, because the response to HEAD has no content. */
typedef struct {
    http1_span method, target; /* as received */
    http1_span path, query;    /* of origin- and absolute-form; absolute-form may have no path; query without '?' */
    http1_span authority;      /* of absolute- and authority-form: host[:port].  It takes precedence over Host, from
                                  which it may differ (RFC 9112 3.2.2) */
    http1_span host;           /* value of Host; len 0 if absent or empty */
    uint64_t content_length;   /* at most 2^63-1; 0 unless has_length */
    uint8_t method_id;         /* enum http1_method */
    uint8_t form;              /* enum http1_form */
    uint8_t minor;             /* 0 or 1; HTTP/1.2 and up count as 1 (RFC 9110 2.5) */
    bool has_length, chunked;  /* never both; if neither, there is no body */
    bool keep_alive;           /* the peer's wish, by version and Connection (RFC 9112 9.3) */
    bool upgrade;              /* Connection names Upgrade (RFC 9110 7.8); what to is not looked at */
    bool expect_continue;      /* the peer waits for 100 before it sends its body; false without a body */
    bool has_query;            /* there is a '?', even if nothing follows it */
    bool bad_host;             /* Host is not a uri-host[:port].  RFC 9112 3.2 requires 400, but probes send any text
                                  here; the caller refuses it with HTTP1_E_HOST where it matters */
    uint16_t n_headers;
    http1_header headers[HTTP1_MAX_HEADERS]; /* n_headers of them, in their order, names as received */
} http1_head;

typedef struct {
    uint16_t max_head_size;   /* bytes, including the blank line; beyond it: 431 */
    uint16_t max_target_size; /* bytes; beyond it: 414 */
    uint16_t max_headers;     /* at most HTTP1_MAX_HEADERS; beyond it: 431 */
} http1_limits;

/*
 * Parses the head of the request at buf.  `seen` is the length with which the
 * previous call on the same bytes returned HTTP1_PARTIAL, or 0 in the first call.
 * Up to four empty lines before the request line are skipped and counted in the
 * length.  Returns the length of the head, including the blank line;
 * HTTP1_PARTIAL; or an error of HTTP1_ERRORS, after which no more HTTP may be
 * read from this connection.
 */
int http1_parse_head(const char *buf, size_t len, size_t seen, const http1_limits *limits, http1_head *head);

/* An error's HTTP status, its name ("TARGET_SIZE"), and a text for the peer. */
int http1_error_status(int error);
const char *http1_error_name(int error);
const char *http1_error_text(int error);

/* The state of a chunked body; opaque, may be copied. */
typedef struct {
    uint64_t left; /* of the chunk: its size while it is being read, then the bytes left */
    uint16_t extension_size, trailer_size;
    uint8_t state, n_digits, n_trailers;
    int8_t error;
} http1_chunked;

void http1_chunked_init(http1_chunked *d);

/*
 * Decodes a chunked body (RFC 9112 7.1), any number of bytes at a time, from src
 * into dst, which may be src or any place before it.  In: *src_len, the bytes
 * available.  Out: *src_len, the bytes consumed; *dst_len, the bytes produced
 * (never more).  Returns 0 if more bytes are needed (all were consumed), 1 if
 * the body is complete (trailers are checked and dropped; what follows the
 * message is not consumed), or an error of HTTP1_ERRORS.  1 and errors are
 * final: further calls consume nothing and return the same.
 */
int http1_chunked_decode(http1_chunked *d, const char *src, size_t *src_len, char *dst, size_t *dst_len);

#endif
