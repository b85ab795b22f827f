/*
 * limits.h - the one list of what the front allows.
 *
 * Each line is a member of front_limits, a keyword of the binding's Front, its default, and the bounds of what it accepts.
 * The settings of the same name are passed to it by that name alone (pkg/service/service.py).
 *
 *   NUMBER     uint32_t
 *   SIZE       bytes, uint64_t
 *   DURATION   nanoseconds, int64_t; the keyword is in seconds
 *   FLAG       bool
 */
#ifndef FRONT_LIMITS_H
#define FRONT_LIMITS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "http/http1.h"

#define FRONT_SECOND 1000000000LL

#define FRONT_LIMITS(NUMBER, SIZE, DURATION, FLAG)                                                                            \
    NUMBER(max_connections, 10000, 0, UINT32_MAX)                                                                            \
    NUMBER(max_queue, 1024, 0, UINT32_MAX)                           /* requests waiting for a worker */                     \
    NUMBER(max_header_size, 32768, 1, HTTP1_MAX_HEAD_SIZE)           /* bytes of a whole head */                             \
    NUMBER(max_headers, 100, 1, HTTP1_MAX_HEADERS)                                                                           \
    NUMBER(max_target_size, 8192, 0, UINT32_MAX)                     /* bytes */                                             \
    SIZE(max_body_size, 100 << 20, 0, UINT64_MAX)                    /* decoded */                                           \
    SIZE(body_buffer_size, 64 << 10, 0, SIZE_MAX)                    /* of a body that is collected before hand-over */      \
    SIZE(body_spool_size, 32 << 20, 0, UINT64_MAX)                   /* of all spooled bodies together */                    \
    SIZE(response_buffer_size, 1 << 20, 0, SIZE_MAX)                 /* of a response that is left with the loop */          \
    SIZE(buffer_size, 32 << 20, 0, SIZE_MAX)                         /* of all buffers together */                           \
    NUMBER(min_body_rate, 500, 0, UINT32_MAX)                        /* bytes per second, in both directions */              \
    DURATION(header_timeout, 10 * FRONT_SECOND, 0, INT64_MAX)                                                                \
    DURATION(body_timeout, 30 * FRONT_SECOND, 0, INT64_MAX)                                                                  \
    DURATION(idle_timeout, 75 * FRONT_SECOND, 0, INT64_MAX)                                                                  \
    DURATION(write_timeout, 30 * FRONT_SECOND, 0, INT64_MAX)                                                                 \
    DURATION(queue_timeout, 10 * FRONT_SECOND, 0, INT64_MAX)                                                                 \
    DURATION(linger_timeout, 5 * FRONT_SECOND, 0, INT64_MAX)                                                                 \
    DURATION(request_timeout, 0, 0, INT64_MAX)                       /* from front_take() on; 0: none; then 504, or a cut */ \
    DURATION(slow_callback_duration, 1 * FRONT_SECOND / 10, 0, INT64_MAX) /* of an event loop's turn; 0: none is slow */     \
    FLAG(stream_bodies, false, 0, 1)                                 /* a long body goes to its worker as it arrives */      \
    FLAG(retry_idempotent, true, 0, 1)                                /* GET and HEAD, once, if a worker process dies */          \
    FLAG(proxy_optional, false, 0, 1)                                /* the PROXY header of `proxies` may be missing */

/* An IPv4 network in its IPv6-mapped form, or an IPv6 network. */
typedef struct {
    unsigned char address[16];
    uint8_t bits;
} front_network;

#define FRONT_MAX_NETWORKS 64

#define FRONT_NUMBER(name, ...) uint32_t name;
#define FRONT_SIZE(name, ...) uint64_t name;
#define FRONT_DURATION(name, ...) int64_t name;
#define FRONT_FLAG(name, ...) bool name;
typedef struct {
    FRONT_LIMITS(FRONT_NUMBER, FRONT_SIZE, FRONT_DURATION, FRONT_FLAG)
    front_network proxies[FRONT_MAX_NETWORKS]; /* peers that may begin a connection with a PROXY header */
    unsigned n_proxies;
    const char *body_spool; /* directory for spooled bodies, or NULL for memory; copied */
    bool parallel;          /* workers run in parallel, without a shared interpreter lock */
} front_limits;
#undef FRONT_NUMBER
#undef FRONT_SIZE
#undef FRONT_DURATION
#undef FRONT_FLAG

/* One line of the list. */
typedef struct {
    const char *name;
    enum front_kind { FRONT_KIND_NUMBER, FRONT_KIND_SIZE, FRONT_KIND_DURATION, FRONT_KIND_FLAG } kind;
    size_t offset;
    uint64_t usual, least, most;
} front_limit;

const front_limit *front_limit_at(unsigned i); /* NULL after the last one */
void front_limit_set(front_limits *limits, const front_limit *line, uint64_t value);

#endif
