/*
 * http1.c - see http1.h for the theory.  In this order: hosts; the fields that
 * matter here; the request line; header lines; the head; chunked bodies; errors.
 * http1_scan.h classifies bytes and searches for them.
 *
 * The parser is one always-inlined function, compiled once per instruction set
 * and chosen at run time, so that no build needs -march.
 */
#include "http1.h"

#include "http1_scan.h"

enum {
    MAX_EMPTY_LINES = 4,       /* RFC 9112 2.2: "at least one" should be skipped */
    MAX_METHOD_SIZE = 32,      /* the longest registered, UPDATEREDIRECTREF, has 17 */
    MAX_EXTENSION_SIZE = 4096, /* for all chunks of a message (RFC 9112 7.1.1: a reasonable limit) */
    MAX_TRAILER_SIZE = 8192,   /* for all trailers, including line ends */
    MAX_TRAILERS = 64,
    REPARSE_ALWAYS = 256, /* below this size a partial head is parsed again, however few bytes have arrived */
};

static inline http1_span span(const uint8_t *buf, const uint8_t *p, const uint8_t *end) {
    return (http1_span){(uint16_t)(p - buf), (uint16_t)(end - p)};
}

/* A header line; the value without surrounding white space. */
struct line {
    const uint8_t *name_end, *value, *value_end;
};

ALWAYS_INLINE void put_header(http1_header *header, const uint8_t *buf, const uint8_t *name, const struct line *line) {
#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
    /* All four in one store; the plain form compiles to twice as many instructions. */
    const uint64_t all = (uint64_t)(name - buf) | (uint64_t)(line->name_end - name) << 16 |
                         (uint64_t)(line->value - buf) << 32 | (uint64_t)(line->value_end - line->value) << 48;
    memcpy(header, &all, sizeof all);
#else
    header->name = span(buf, name, line->name_end);
    header->value = span(buf, line->value, line->value_end);
#endif
}

/* Hosts ------------------------------------------------------------------ */

/* IPv6address (RFC 3986 3.2.2): eight groups, one run of them may be "::", the last two may be an IPv4address. */
static bool is_ipv6(const uint8_t *p, const uint8_t *end) {
    int groups = 0;
    bool run = false;
    if (end - p >= 2 && p[0] == ':' && p[1] == ':') {
        run = true;
        p += 2;
    }
    while (p < end) {
        const uint8_t *group = p;
        while (p < end && p - group < 4 && hex_value(*p) >= 0)
            p++;
        if (p == group)
            return false;
        if (p < end && *p == '.') { /* four of 0 to 255 without leading zeros, to the end */
            p = group;
            for (int i = 0; i < 4; i++) {
                int octet = 0;
                const uint8_t *first = p;
                while (p < end && p - first < 3 && is_digit(*p))
                    octet = octet * 10 + (*p++ - '0');
                if (p == first || octet > 255 || (*first == '0' && p - first > 1))
                    return false;
                if (i < 3 && (p == end || *p++ != '.'))
                    return false;
            }
            groups += 2;
            return p == end && (run ? groups <= 7 : groups == 8);
        }
        groups++;
        if (p == end)
            break;
        if (*p++ != ':' || p == end)
            return false;
        if (*p == ':') {
            if (run)
                return false;
            run = true;
            p++;
        }
    }
    return run ? groups <= 7 : groups == 8;
}

/* IPvFuture: "v" 1*HEXDIG "." 1*( unreserved / sub-delims / ":" ) */
static bool is_ip_future(const uint8_t *p, const uint8_t *end) {
    const uint8_t *digits = p + 1;
    if (p == end || (*p | 0x20) != 'v')
        return false;
    for (p = digits; p < end && hex_value(*p) >= 0;)
        p++;
    if (p == digits || end - p < 2 || *p++ != '.')
        return false;
    while (p < end && (*p == ':' || is_in(&HOST, *p)))
        p++;
    return p == end;
}

/* A port, which may be empty unless it is needed.  RFC 3986 has no limit, but TCP has. */
static inline bool is_port(const uint8_t *p, const uint8_t *end, bool needed) {
    uint32_t port = 0;
    if (p == end)
        return !needed;
    if (end - p > 5)
        return false;
    for (; p < end; p++) {
        if (!is_digit(*p))
            return false;
        port = port * 10 + (uint32_t)(*p - '0');
    }
    return port <= 65535 && !(needed && port == 0);
}

/* uri-host [ ":" port ], the host not empty (RFC 9110 4.2.1) and without userinfo (4.2.4). */
static COLD bool is_authority(const uint8_t *p, const uint8_t *end, bool needs_port) {
    if (p < end && *p == '[') {
        const uint8_t *close = memchr(p, ']', (size_t)(end - p));
        if (!close || !(is_ipv6(p + 1, close) || is_ip_future(p + 1, close)))
            return false;
        p = close + 1;
    } else {
        const uint8_t *host = p;
        while (p < end) {
            if (is_in(&HOST, *p))
                p++;
            else if (*p == '%' && end - p >= 3 && hex_value(p[1]) >= 0 && hex_value(p[2]) >= 0)
                p += 3;
            else
                break;
        }
        if (p == host)
            return false;
    }
    if (p == end)
        return !needs_port;
    return *p == ':' && is_port(p + 1, end, needs_port);
}

/* The value of Host: empty, or accepted by is_authority(). */
ALWAYS_INLINE bool is_host(enum isa isa, const uint8_t *buf, const uint8_t *p, const uint8_t *end) {
    const uint8_t *q = scan(isa, &HOST, buf, p, end);
    return q == end || (q > p && *q == ':' && is_port(q + 1, end, false)) || is_authority(p, end, false);
}

/* Fields that matter here ------------------------------------------------ */

/* What is known about them until the head is complete. */
struct facts {
    uint8_t n_host, n_chunked;
    bool transfer_encoding; /* present */
    bool chunked_last;      /* chunked is the last coding so far */
    bool other_coding, bad_coding;
    bool close, keep_alive, upgrade; /* options of Connection */
    bool expect_continue, expect_other;
};

/* The next element of a list, without surrounding white space; false at the end (RFC 9110 5.6.1). */
static bool list_next(const uint8_t **next, const uint8_t *end, const uint8_t **element, const uint8_t **element_end) {
    const uint8_t *p = *next, *comma;
    if (p > end)
        return false;
    comma = memchr(p, ',', (size_t)(end - p));
    if (!comma)
        comma = end;
    *next = comma + 1; /* one past the end when the list is done */
    while (p < comma && is_space(*p))
        p++;
    while (comma > p && is_space(comma[-1]))
        comma--;
    *element = p;
    *element_end = comma;
    return true;
}

/* RFC 9110 8.6: 1*DIGIT.  RFC 9112 6.3 permits to take "5, 5" for 5; it is refused, as its sender is confused. */
static COLD int on_content_length(http1_head *head, const uint8_t *p, const uint8_t *end) {
    uint64_t length = 0;
    if (head->has_length)
        return HTTP1_E_CONTENT_LENGTH_REPEATED;
    if (p == end || end - p > 19) /* 19 digits cannot overflow 64 bits */
        return HTTP1_E_CONTENT_LENGTH;
    for (; p < end; p++) {
        if (!is_digit(*p))
            return HTTP1_E_CONTENT_LENGTH;
        length = length * 10 + (uint64_t)(*p - '0');
    }
    if (length > INT64_MAX) /* callers count in off_t */
        return HTTP1_E_CONTENT_LENGTH;
    head->content_length = length;
    head->has_length = true;
    return 0;
}

/* RFC 9112 6.1.  conclude() decides, when all lines are known.  An empty element is legal in a list, but two
   readers who disagree about it make request smuggling possible: it is refused. */
static COLD void on_transfer_encoding(struct facts *facts, const uint8_t *p, const uint8_t *end) {
    const uint8_t *next = p, *coding, *coding_end;
    facts->transfer_encoding = true;
    while (list_next(&next, end, &coding, &coding_end)) {
        const uint8_t *name_end = scan_bytes(&TOKEN, coding, coding_end);
        const bool chunked = IS(coding, name_end, "chunked");
        if (name_end == coding || (name_end < coding_end && (chunked || (*name_end != ';' && !is_space(*name_end)))))
            facts->bad_coding = true; /* chunked has no parameters (7.1) */
        facts->chunked_last = chunked;
        if (!chunked)
            facts->other_coding = true;
        else if (facts->n_chunked < 2)
            facts->n_chunked++;
    }
}

/* RFC 9110 7.6.1 */
static COLD void on_connection(struct facts *facts, const uint8_t *p, const uint8_t *end) {
    const uint8_t *next = p, *option, *option_end;
    while (list_next(&next, end, &option, &option_end)) {
        if (IS(option, option_end, "close"))
            facts->close = true;
        else if (IS(option, option_end, "keep-alive"))
            facts->keep_alive = true;
        else if (IS(option, option_end, "upgrade"))
            facts->upgrade = true;
    }
}

/* RFC 9110 10.1.1 */
static COLD void on_expect(struct facts *facts, const uint8_t *p, const uint8_t *end) {
    const uint8_t *next = p, *member, *member_end;
    while (list_next(&next, end, &member, &member_end)) {
        if (IS(member, member_end, "100-continue"))
            facts->expect_continue = true;
        else if (member < member_end)
            facts->expect_other = true;
    }
}

/* The lengths of the names below, as a set. */
#define KNOWN_SIZES (1u << 4 | 1u << 6 | 1u << 10 | 1u << 14 | 1u << 17)

/* A field of a known length: 0, or an error. */
ALWAYS_INLINE int on_field(enum isa isa, const uint8_t *buf, const uint8_t *name, const struct line *line,
                           struct facts *facts, http1_head *head) {
    const uint8_t *p = line->value, *end = line->value_end;
    if (IS(name, line->name_end, "host")) {
        if (facts->n_host++) /* RFC 9112 3.2, also in HTTP/1.0 */
            return HTTP1_E_HOST_REPEATED;
        head->host = span(buf, p, end);
        head->bad_host = !is_host(isa, buf, p, end);
    } else if (IS(name, line->name_end, "connection")) {
        if (IS(p, end, "keep-alive")) /* nearly always one of these two */
            facts->keep_alive = true;
        else if (IS(p, end, "close"))
            facts->close = true;
        else
            on_connection(facts, p, end);
    } else if (IS(name, line->name_end, "content-length")) {
        return on_content_length(head, p, end);
    } else if (IS(name, line->name_end, "transfer-encoding")) {
        on_transfer_encoding(facts, p, end);
    } else if (IS(name, line->name_end, "expect")) {
        on_expect(facts, p, end);
    }
    return 0;
}

/* Interprets the fields of a complete head. */
ALWAYS_INLINE int conclude(const struct facts *facts, http1_head *head) {
    /* RFC 9112 3.2: HTTP/1.1 without Host is refused; a second Host has been refused already. */
    if (head->minor && facts->n_host == 0)
        return HTTP1_E_HOST_MISSING;

    /* RFC 9112 6.1, 6.3: the one place where the end of the body is decided. */
    if (UNLIKELY(facts->transfer_encoding)) {
        if (head->has_length)
            return HTTP1_E_FRAMING;
        if (head->minor == 0)
            return HTTP1_E_TRANSFER_ENCODING_1_0;
        if (facts->bad_coding || facts->n_chunked > 1 || (facts->n_chunked && !facts->chunked_last))
            return HTTP1_E_TRANSFER_ENCODING;
        if (facts->other_coding)
            return HTTP1_E_TRANSFER_CODING;
        head->chunked = true;
    }

    /* RFC 9112 9.3 */
    head->keep_alive = !facts->close && (head->minor || facts->keep_alive);
    head->upgrade = facts->upgrade;

    /* RFC 9110 10.1.1: ignored in HTTP/1.0; without a body there is nothing to continue with. */
    if (head->minor) {
        if (facts->expect_other)
            return HTTP1_E_EXPECTATION;
        head->expect_continue = facts->expect_continue && (head->chunked || head->content_length > 0);
    }
    return 0;
}

/* The request line ------------------------------------------------------- */

static inline uint8_t method_id(const uint8_t *p, size_t n) {
#define METHOD(name) \
    if (memcmp(p, #name, sizeof(#name) - 1) == 0) \
        return HTTP1_##name;
    switch (n) {
    case 3:
        METHOD(GET)
        METHOD(PUT)
        break;
    case 4:
        METHOD(HEAD)
        METHOD(POST)
        break;
    case 5:
        METHOD(PATCH)
        METHOD(TRACE)
        break;
    case 6:
        METHOD(DELETE)
        break;
    case 7:
        METHOD(OPTIONS)
        METHOD(CONNECT)
        break;
    }
#undef METHOD
    return HTTP1_OTHER;
}

/* Any target but origin-form (RFC 9112 3.2.2 to 3.2.4).  The path ends at path_end: '?' or the end of the target. */
static COLD int parse_rare_target(const uint8_t *buf, const uint8_t *p, const uint8_t *path_end, const uint8_t *end,
                                  http1_head *head) {
    const uint8_t *authority_end;
    if (head->method_id == HTTP1_CONNECT) {
        if (!is_authority(p, end, true)) /* RFC 9110 9.3.6: without a valid port it must be refused */
            return HTTP1_E_TARGET;
        head->form = HTTP1_AUTHORITY;
        head->authority = span(buf, p, end);
        head->path = head->query = (http1_span){0, 0};
        head->has_query = false;
        return 0;
    }
    if (end - p == 1 && *p == '*' && head->method_id == HTTP1_OPTIONS) {
        head->form = HTTP1_ASTERISK;
        head->path = (http1_span){0, 0};
        return 0;
    }
    if (path_end - p > 7 && text_is_word((const char *)p, "http://", 7))
        p += 7;
    else if (path_end - p > 8 && text_is_word((const char *)p, "https://", 8))
        p += 8;
    else
        return HTTP1_E_TARGET;
    authority_end = memchr(p, '/', (size_t)(path_end - p));
    if (!authority_end)
        authority_end = path_end;
    if (!is_authority(p, authority_end, false))
        return HTTP1_E_TARGET;
    head->form = HTTP1_ABSOLUTE;
    head->authority = span(buf, p, authority_end);
    head->path = span(buf, authority_end, path_end);
    return 0;
}

/* HTTP-version and the end of the line (RFC 9112 2.3): their length, or HTTP1_PARTIAL, or an error. */
static COLD int parse_version(const uint8_t *p, const uint8_t *end, http1_head *head) {
    static const char form[] = "HTTP/0.0\r\n"; /* 0 stands for any digit */
    for (int i = 0; i < 10; i++) {
        if (p + i == end)
            return HTTP1_PARTIAL;
        if (form[i] == '0' ? !is_digit(p[i]) : p[i] != form[i])
            return i < 8 ? HTTP1_E_VERSION : HTTP1_E_LINE_END;
        if (i == 7 && p[5] != '1')
            return HTTP1_E_VERSION_MAJOR;
    }
    head->minor = p[7] != '0';
    return 10;
}

/* The request line from p on (RFC 9112 3): its length, HTTP1_PARTIAL, or an error. */
ALWAYS_INLINE int parse_request_line(enum isa isa, const struct window *window, const uint8_t *buf, const uint8_t *p,
                                     const uint8_t *end, const http1_limits *limits, http1_head *head) {
    const uint8_t *line = p, *q, *path_end;
    int n;

    q = window_token(window, p);
    if (UNLIKELY(!q))
        q = scan_bytes(&TOKEN, p, end);
    if (UNLIKELY(q - p > MAX_METHOD_SIZE)) /* RFC 9112 3: 501 for a method longer than any known one */
        return HTTP1_E_METHOD_SIZE;
    if (UNLIKELY(q == end))
        return HTTP1_PARTIAL;
    if (UNLIKELY(q == p || *q != ' '))
        return HTTP1_E_METHOD;
    head->method = span(buf, p, q);
    head->method_id = method_id(p, (size_t)(q - p));

    p = q + 1;
    q = path_end = scan(isa, &PATH, buf, p, end);
    if (q < end && *q == '?') {
        head->has_query = true;
        q = scan(isa, &QUERY, buf, q + 1, end);
    }
    /* First the length, then the byte after it, which may not have arrived: the result must not depend on that. */
    if (UNLIKELY(q - p > limits->max_target_size))
        return HTTP1_E_TARGET_SIZE;
    if (UNLIKELY(q == end))
        return HTTP1_PARTIAL;
    if (UNLIKELY(*q != ' ')) /* HTTP/0.9 has no version */
        return *q == '\r' || *q == '\n' ? HTTP1_E_REQUEST_LINE : HTTP1_E_TARGET;
    if (UNLIKELY(q == p))
        return HTTP1_E_REQUEST_LINE;
    head->target = span(buf, p, q);
    head->path = span(buf, p, path_end);
    if (head->has_query)
        head->query = span(buf, path_end + 1, q);
    if (UNLIKELY(*p != '/' || head->method_id == HTTP1_CONNECT)) {
        n = parse_rare_target(buf, p, path_end, q, head);
        if (n < 0)
            return n;
    }

    p = q + 1;
    if (end - p >= 10 && memcmp(p, "HTTP/1.1\r\n", 10) == 0) {
        head->minor = 1;
        return (int)(p + 10 - line);
    }
    n = parse_version(p, end, head);
    return n > 0 ? (int)(p + n - line) : n;
}

/* Header lines ----------------------------------------------------------- */

/* OWS field-value OWS: everything between the colon and a CR.  All bytes are TEXT, so only SP and HTAB are <= ' '. */
ALWAYS_INLINE struct line trimmed(const uint8_t *colon, const uint8_t *cr) {
    const uint8_t *p = colon + 1;
    p += *p == ' ';
    while (UNLIKELY(is_space(*p)))
        p++;
    while (UNLIKELY(cr[-1] <= ' ' && cr > p))
        cr--;
    return (struct line){colon, p, cr};
}

/* The line at p, read byte by byte: its length, HTTP1_PARTIAL, or an error. */
static NOINLINE int parse_line(const uint8_t *p, const uint8_t *end, struct line *line) {
    const uint8_t *name = p, *colon;

    /* field-name ":" (RFC 9112 5.1): nothing between the two */
    p = scan_bytes(&TOKEN, p, end);
    if (p == end)
        return HTTP1_PARTIAL;
    if (*p == '\r' || *p == '\n')
        return HTTP1_E_LINE_END;
    if (p == name && is_space(*p)) /* 5.2, and 2.2 for the first line */
        return HTTP1_E_FOLDED_LINE;
    if (p == name || *p != ':')
        return HTTP1_E_HEADER_NAME;
    colon = p;

    /* RFC 9110 5.5; RFC 9112 2.2: a bare CR or LF ends nothing here */
    p = scan_portable(&TEXT, p, p + 1, end);
    if (p == end)
        return HTTP1_PARTIAL;
    if (*p != '\r')
        return *p == '\n' ? HTTP1_E_LINE_END : HTTP1_E_HEADER_VALUE;
    if (end - p < 2)
        return HTTP1_PARTIAL;
    if (p[1] != '\n')
        return HTTP1_E_LINE_END;
    *line = trimmed(colon, p);
    return (int)(p + 2 - name);
}

/* The same at once for a valid line; NULL leaves the line to parse_line(). */
ALWAYS_INLINE const uint8_t *glance(enum isa isa, struct window *window, const uint8_t *p, const uint8_t *end,
                                    struct line *line) {
    const uint8_t *colon, *cr;
    if (UNLIKELY(!window_line(isa, window, p, &colon, &cr)))
        return NULL;
    if (UNLIKELY(*colon != ':' || colon == p || end - cr < 2 || memcmp(cr, "\r\n", 2) != 0))
        return NULL;
    *line = trimmed(colon, cr);
    return cr + 2;
}

/* The head --------------------------------------------------------------- */

ALWAYS_INLINE int parse(enum isa isa, const uint8_t *buf, const uint8_t *end, const http1_limits *limits,
                        http1_head *head) {
    const size_t max_headers = limits->max_headers < HTTP1_MAX_HEADERS ? limits->max_headers : HTTP1_MAX_HEADERS;
    const uint8_t *p = buf;
    struct facts facts = {0};
    struct window window;
    size_t n_headers = 0;
    int n;

    memset(head, 0, offsetof(http1_head, headers));
    window_open(isa, &window, buf, end);

    /* Empty lines before the request line (RFC 9112 2.2). */
    while (p < end && UNLIKELY(*p == '\r' || *p == '\n')) {
        if (*p == '\n')
            return HTTP1_E_LINE_END;
        if (end - p < 2)
            return HTTP1_PARTIAL;
        if (p[1] != '\n')
            return HTTP1_E_LINE_END;
        p += 2;
        if (p - buf > 2 * MAX_EMPTY_LINES)
            return HTTP1_E_EMPTY_LINES;
    }

    n = parse_request_line(isa, &window, buf, p, end, limits, head);
    if (UNLIKELY(n <= 0))
        return n;
    p += n;

    for (;;) {
        struct line line;
        const uint8_t *name = p;

        if (UNLIKELY(p == end))
            return HTTP1_PARTIAL;
        if (*p == '\r') {
            if (UNLIKELY(end - p < 2))
                return HTTP1_PARTIAL;
            if (UNLIKELY(p[1] != '\n'))
                return HTTP1_E_LINE_END;
            p += 2;
            break;
        }
        if (UNLIKELY(n_headers == max_headers))
            return HTTP1_E_HEADER_COUNT;

        p = glance(isa, &window, name, end, &line);
        if (UNLIKELY(!p)) {
            struct line slow; /* its address escapes; that of `line` must not, so that it can stay in registers */
            n = parse_line(name, end, &slow);
            if (n <= 0)
                return n;
            line = slow;
            p = name + n;
        }
        put_header(&head->headers[n_headers++], buf, name, &line);

        if (line.name_end - name <= 17 && KNOWN_SIZES >> (line.name_end - name) & 1) {
            n = on_field(isa, buf, name, &line, &facts, head);
            if (UNLIKELY(n < 0))
                return n;
        }
    }
    head->n_headers = (uint16_t)n_headers;
    n = conclude(&facts, head);
    return n < 0 ? n : (int)(p - buf);
}

static int parse_portable(const uint8_t *buf, const uint8_t *end, const http1_limits *limits, http1_head *head) {
    return parse(PORTABLE, buf, end, limits, head);
}

#ifdef HTTP1_X86
TARGET_SSSE3 static int parse_ssse3(const uint8_t *buf, const uint8_t *end, const http1_limits *limits,
                                    http1_head *head) {
    return parse(SSSE3, buf, end, limits, head);
}

TARGET_AVX2 static int parse_avx2(const uint8_t *buf, const uint8_t *end, const http1_limits *limits,
                                  http1_head *head) {
    const int n = parse(AVX2, buf, end, limits, head);
    /* gcc 12 forgets it after a call to a local function; then all SSE code of the thread takes twice as long. */
    _mm256_zeroupper();
    return n;
}
#endif

#ifdef HTTP1_NEON
static int parse_neon(const uint8_t *buf, const uint8_t *end, const http1_limits *limits, http1_head *head) {
    return parse(NEON, buf, end, limits, head);
}
#endif

static inline int parse_best(const uint8_t *buf, const uint8_t *end, const http1_limits *limits, http1_head *head) {
#ifdef HTTP1_X86
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("bmi") && __builtin_cpu_supports("bmi2"))
        return parse_avx2(buf, end, limits, head);
    if (__builtin_cpu_supports("ssse3"))
        return parse_ssse3(buf, end, limits, head);
#endif
#ifdef HTTP1_NEON
    return parse_neon(buf, end, limits, head);
#endif
    return parse_portable(buf, end, limits, head);
}

/*
 * Can the bytes after `seen` wait until more have arrived?  Unless a line ends
 * among them, they cannot complete the head.  An error in them is found at the
 * end of the line, or earlier: they are parsed anyway each time their number
 * passes a power of two.
 */
static NOINLINE bool is_idle(const uint8_t *buf, size_t len, size_t seen) {
    if (seen < REPARSE_ALWAYS || seen >= len || (seen ^ len) > seen || buf[seen - 1] == '\r')
        return seen == len;
    return scan_portable(&TEXT, buf, buf + seen, buf + len) == buf + len;
}

int http1_parse_head(const char *buf, size_t len, size_t seen, const http1_limits *limits, http1_head *head) {
    const uint8_t *p = (const uint8_t *)buf;
    const size_t max_size = limits->max_head_size;
    int n;
    if (seen > 0 && len < max_size && is_idle(p, len, seen))
        return HTTP1_PARTIAL;
    n = parse_best(p, p + (len < max_size ? len : max_size), limits, head);
    if (UNLIKELY(n == HTTP1_PARTIAL && len >= max_size)) /* RFC 9110 15.5.15, RFC 6585 5 */
        return head->target.len == 0 ? HTTP1_E_TARGET_SIZE : HTTP1_E_HEAD_SIZE;
    return n;
}

/* Chunked bodies --------------------------------------------------------- */

/*
 * RFC 9112 7.1, one state per place in the grammar:
 *
 *   chunk     = 1*HEXDIG *( BWS ";" BWS name [ BWS "=" BWS ( token / quoted ) ] ) CRLF data CRLF
 *               SIZE     AFTER_SIZE BEFORE_NAME NAME AFTER_NAME BEFORE_VALUE ...  SIZE_LF DATA DATA_CR DATA_LF
 *   the end   = 1*"0" ... CRLF *( name ":" text CRLF ) CRLF
 *               SIZE                LINE NAME  TEXT LF   END_LF     (all T_)
 */
enum {
    SIZE,
    AFTER_SIZE,
    BEFORE_NAME,
    NAME,
    AFTER_NAME,
    BEFORE_VALUE,
    VALUE,
    QUOTED,
    QUOTED_PAIR,
    AFTER_QUOTED,
    AFTER_VALUE,
    SIZE_LF,
    DATA,
    DATA_CR,
    DATA_LF,
    T_LINE,
    T_NAME,
    T_TEXT,
    T_LF,
    END_LF,
    COMPLETE,
    FAILED,
};

void http1_chunked_init(http1_chunked *d) {
    memset(d, 0, sizeof *d);
}

/* One byte of a chunk's first line: the next state, or an error. */
static int chunk_line(http1_chunked *d, uint8_t c) {
    const int digit = d->state == SIZE ? hex_value(c) : -1;
    if (digit >= 0) { /* at most 16 digits and 2^63-1, so that no counter overflows */
        if (d->n_digits == 16 || d->left >> 59)
            return HTTP1_E_CHUNK_SIZE;
        d->n_digits++;
        d->left = d->left << 4 | (uint64_t)digit;
        return SIZE;
    }
    if (d->state == SIZE && (d->n_digits == 0 || (c != '\r' && c != ';' && !is_space(c))))
        return HTTP1_E_CHUNK_SIZE;
    if (c == '\r') /* ends a line after a size, a name or a value; the grammar allows no white space before it */
        return d->state == SIZE || d->state == NAME || d->state == VALUE || d->state == AFTER_QUOTED
                   ? SIZE_LF
                   : HTTP1_E_CHUNK_EXTENSION;
    if (d->extension_size == MAX_EXTENSION_SIZE)
        return HTTP1_E_CHUNK_EXTENSION_SIZE;
    d->extension_size++;

    switch (d->state) {
    case SIZE:
    case AFTER_SIZE:
        return c == ';' ? BEFORE_NAME : is_space(c) ? AFTER_SIZE : HTTP1_E_CHUNK_EXTENSION;
    case BEFORE_NAME:
        return is_in(&TOKEN, c) ? NAME : is_space(c) ? BEFORE_NAME : HTTP1_E_CHUNK_EXTENSION;
    case NAME:
        if (is_in(&TOKEN, c))
            return NAME;
        /* fall through */
    case AFTER_NAME:
        return c == '=' ? BEFORE_VALUE : c == ';' ? BEFORE_NAME : is_space(c) ? AFTER_NAME : HTTP1_E_CHUNK_EXTENSION;
    case BEFORE_VALUE:
        return c == '"' ? QUOTED : is_in(&TOKEN, c) ? VALUE : is_space(c) ? BEFORE_VALUE : HTTP1_E_CHUNK_EXTENSION;
    case QUOTED: /* RFC 9110 5.6.4 */
        return c == '"' ? AFTER_QUOTED : c == '\\' ? QUOTED_PAIR : is_in(&TEXT, c) ? QUOTED : HTTP1_E_CHUNK_EXTENSION;
    case QUOTED_PAIR:
        return is_in(&TEXT, c) ? QUOTED : HTTP1_E_CHUNK_EXTENSION;
    case VALUE:
        if (is_in(&TOKEN, c))
            return VALUE;
        /* fall through */
    default: /* AFTER_QUOTED, AFTER_VALUE */
        return c == ';' ? BEFORE_NAME : is_space(c) ? AFTER_VALUE : HTTP1_E_CHUNK_EXTENSION;
    }
}

/* One byte after the last chunk: the next state, or an error. */
static int chunk_trailer(http1_chunked *d, uint8_t c) {
    if (d->state == T_LINE && c == '\r')
        return END_LF;
    if (d->trailer_size == MAX_TRAILER_SIZE)
        return HTTP1_E_TRAILER_SIZE;
    d->trailer_size++;
    switch (d->state) {
    case T_LINE:
        if (!is_in(&TOKEN, c))
            return HTTP1_E_TRAILER;
        if (d->n_trailers == MAX_TRAILERS)
            return HTTP1_E_TRAILER_SIZE;
        d->n_trailers++;
        return T_NAME;
    case T_NAME:
        return c == ':' ? T_TEXT : is_in(&TOKEN, c) ? T_NAME : HTTP1_E_TRAILER;
    case T_TEXT:
        return c == '\r' ? T_LF : is_in(&TEXT, c) ? T_TEXT : HTTP1_E_TRAILER;
    default: /* T_LF */
        return c == '\n' ? T_LINE : HTTP1_E_TRAILER;
    }
}

int http1_chunked_decode(http1_chunked *d, const char *src, size_t *src_len, char *dst, size_t *dst_len) {
    const size_t len = *src_len;
    size_t pos = 0, out = 0;

    while (pos < len && d->state < COMPLETE) {
        const uint8_t c = (uint8_t)src[pos];
        int next;
        if (d->state == DATA) {
            const size_t n = len - pos < d->left ? len - pos : (size_t)d->left;
            memmove(dst + out, src + pos, n); /* dst is not after src, so nothing unread is overwritten */
            pos += n;
            out += n;
            d->left -= n;
            if (d->left == 0)
                d->state = DATA_CR;
            continue;
        }
        pos++;
        if (d->state < SIZE_LF)
            next = chunk_line(d, c);
        else if (d->state >= T_LINE && d->state <= T_LF)
            next = chunk_trailer(d, c);
        else if (d->state == SIZE_LF)
            next = c != '\n' ? HTTP1_E_CHUNK_EXTENSION : d->left ? DATA : T_LINE;
        else if (d->state == DATA_CR)
            next = c != '\r' ? HTTP1_E_CHUNK_END : DATA_LF;
        else if (d->state == DATA_LF)
            next = c != '\n' ? HTTP1_E_CHUNK_END : SIZE;
        else /* END_LF */
            next = c != '\n' ? HTTP1_E_TRAILER : COMPLETE;
        if (next < 0) {
            d->error = (int8_t)next;
            next = FAILED;
        }
        if (d->state == DATA_LF)
            d->n_digits = 0; /* left is 0: a new chunk begins */
        d->state = (uint8_t)next;
    }
    *src_len = pos;
    *dst_len = out;
    return d->state == FAILED ? d->error : d->state == COMPLETE;
}

/* Errors ----------------------------------------------------------------- */

static const struct {
    int status;
    const char *name, *text;
} ERRORS[] = {
    {500, "NONE", "no error of the HTTP parser"}, /* for any other number */
#define ENTRY(name, status, text) {status, #name, text},
    HTTP1_ERRORS(ENTRY)
#undef ENTRY
};

static size_t error_index(int error) {
    return error < 0 && error > -HTTP1_ERROR_END ? (size_t)-error : 0;
}

int http1_error_status(int error) {
    return ERRORS[error_index(error)].status;
}

const char *http1_error_name(int error) {
    return ERRORS[error_index(error)].name;
}

const char *http1_error_text(int error) {
    return ERRORS[error_index(error)].text;
}
