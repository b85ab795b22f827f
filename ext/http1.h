/*
 * http1.h - HTTP/1.1 on the reading side: the head of a request, and a body in
 * chunks.  Bytes in; spans, "more wanted" or an error out.
 *
 * Theory of operation
 * -------------------
 * Nothing here does I/O, allocates, copies or keeps state behind the caller's
 * back.  A head is parsed where it lies: the result is spans into that very
 * buffer, which must stay until they are no longer needed.  A byte past
 * buf + len is never read, so the buffer needs no terminator and no padding.
 *
 *      bytes --> http1_parse_head() --> >0  a head of that many bytes
 *        ^                          --> 0   HTTP1_PARTIAL: read on, call again
 *        `------- read more <----------'
 *                                   --> <0  an error: answer, then close
 *
 * The parser is strict (RFC 9112, and 9110 for what fields mean).  Whatever two
 * readers of one connection could take differently is refused, not repaired:
 * bare CR or LF, folded lines, space before a colon, more than one length or
 * coding.  Where and how the body ends is decided here and nowhere else: a
 * caller looks at `chunked`, `has_length` and `content_length`, never at fields.
 *
 * A verdict depends on the bytes alone, not on how they were cut into reads.
 * Only its moment does: an error in the bytes there is found at the latest when
 * their line ends or their number has doubled, so that a head which trickles in
 * costs a bounded number of passes.
 *
 * Threads: no function has state of its own; any may run anywhere at any time.
 *
 * This file includes no Python header, and must not.
 */
#ifndef HTTP1_H
#define HTTP1_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define HTTP1_MAX_HEADERS 128
#define HTTP1_MAX_HEAD_SIZE 65535 /* so that spans are 16 bit */
#define HTTP1_PARTIAL 0

/* X(NAME, status, text): HTTP1_E_NAME is -1, -2, ... in this order; the text may be shown to the peer. */
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
    HTTP1_AUTHORITY, /* host:port, of CONNECT and of nothing else */
    HTTP1_ASTERISK,  /* *, of OPTIONS and of nothing else */
};

/* A place in the buffer that was parsed. */
typedef struct {
    uint16_t pos, len;
} http1_span;

typedef struct {
    http1_span name, value; /* the value without white space around it */
} http1_header;

/* A parsed head.  Meaningful only after http1_parse_head() returned a length; but for `method_id`, which after an error
 * is what had been read by then, as the answer to HEAD has no content. */
typedef struct {
    http1_span method, target; /* as received */
    http1_span path, query;    /* of origin- and absolute-form; absolute-form may have no path; query without '?' */
    http1_span authority;      /* of absolute- and authority-form: host[:port].  Where it is given it counts, not
                                  Host, and the two may differ (RFC 9112 3.2.2) */
    http1_span host;           /* value of Host; len 0 if absent or empty */
    uint64_t content_length;   /* at most 2^63-1; 0 unless has_length */
    uint8_t method_id;         /* enum http1_method */
    uint8_t form;              /* enum http1_form */
    uint8_t minor;             /* 0 or 1; HTTP/1.2 and up count as 1 (RFC 9110 2.5) */
    bool has_length, chunked;  /* never both; neither: no body */
    bool keep_alive;           /* the peer's wish, by version and Connection (RFC 9112 9.3) */
    bool expect_continue;      /* the peer waits for 100 before it sends its body; only if there is to be one */
    bool has_query;            /* a '?' was there, also if nothing follows it */
    bool bad_host;             /* Host is no uri-host[:port].  RFC 9112 3.2 wants 400, but probes come with any text
                                  here: the caller refuses it with HTTP1_E_HOST where it matters */
    uint16_t n_headers;
    http1_header headers[HTTP1_MAX_HEADERS]; /* n_headers of them, in their order, names as received */
} http1_head;

typedef struct {
    uint16_t max_head_size;   /* bytes, blank line included; beyond: 431 */
    uint16_t max_target_size; /* bytes; beyond: 414 */
    uint16_t max_headers;     /* at most HTTP1_MAX_HEADERS count; beyond: 431 */
} http1_limits;

/*
 * Parses the head of the request at buf.  `seen` is the length with which the
 * former call on the same bytes returned HTTP1_PARTIAL, 0 in the first call.
 * Up to four empty lines before the request line are skipped and are part of
 * the length.  Returns the length of the head, blank line included;
 * HTTP1_PARTIAL; or an error of HTTP1_ERRORS, after which nothing more may be
 * read as HTTP from this connection.
 */
int http1_parse_head(const char *buf, size_t len, size_t seen, const http1_limits *limits, http1_head *head);

/* What is known of an error: its HTTP status, its name ("TARGET_SIZE") and a text for the peer. */
int http1_error_status(int error);
const char *http1_error_name(int error);
const char *http1_error_text(int error);

/* The state of a body in chunks; opaque, may be copied. */
typedef struct {
    uint64_t left; /* of the chunk: its size while that is read, then the bytes to come */
    uint16_t extension_size, trailer_size;
    uint8_t state, n_digits, n_trailers;
    int8_t error;
} http1_chunked;

void http1_chunked_init(http1_chunked *d);

/*
 * Decodes a body in chunks (RFC 9112 7.1), any number of bytes at a time, from
 * src into dst, which may be src or any place before it.  In: *src_len, the
 * bytes there.  Out: *src_len, the bytes consumed; *dst_len, the bytes produced
 * (never more).  Returns 0 if more is wanted (all was consumed), 1 if the body
 * is complete (trailers are checked and dropped, what follows the message is
 * not consumed), or an error of HTTP1_ERRORS.  Both ends are final: further
 * calls consume nothing and say the same.
 */
int http1_chunked_decode(http1_chunked *d, const char *src, size_t *src_len, char *dst, size_t *dst_len);

#endif
