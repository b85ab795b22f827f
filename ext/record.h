/*
 * record.h - an access record as a line of JSON, for the requests whose texts need no escaping: nearly all.
 *
 * The lines are those of pkg/_records.py, json_access(), which renders the others.
 */
#ifndef RECORD_H
#define RECORD_H

#include <stddef.h>
#include <stdint.h>

#define RECORD_MAX_SIZE 1024 /* bytes of a line; a longer one is pkg/_records.py's, too */

typedef struct {
    const char *at;
    size_t len;
} record_text;

typedef struct {
    int64_t when;     /* CLOCK_REALTIME, nanoseconds */
    int64_t duration; /* nanoseconds */
    uint64_t received, sent; /* bytes of the bodies */
    unsigned status;
    record_text method, path, client;
    record_text agent, trace_id, span_id, request_id; /* left out if empty */
} record;

/* Renders into `out` (RECORD_MAX_SIZE bytes).  The length with the newline; 0: it is too long, or needs escaping. */
size_t record_json(const record *r, char *out);

#endif
