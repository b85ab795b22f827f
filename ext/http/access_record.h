/*
 * access_record.h - renders an access record as a line of JSON if none of its texts needs escaping, as for nearly all requests.
 *
 * The lines equal those of json_access() in pkg/logs/records.py, which renders the other records.
 */
#ifndef ACCESS_RECORD_H
#define ACCESS_RECORD_H

#include <stddef.h>
#include <stdint.h>

#define ACCESS_RECORD_MAX_SIZE 1024 /* bytes of a line; pkg/logs/records.py renders longer ones */

typedef struct {
    const char *at;
    size_t len;
} access_record_text;

typedef struct {
    int64_t when;     /* CLOCK_REALTIME, nanoseconds */
    int64_t duration; /* nanoseconds */
    uint64_t received, sent; /* bytes of the bodies */
    unsigned status;
    access_record_text method, path, client;
    access_record_text listener, agent, trace_id, span_id, request_id; /* omitted if empty */
} access_record;

/* Renders into `out` (ACCESS_RECORD_MAX_SIZE bytes).  Returns the length with the newline, or 0 if the record is too long or a
 * text needs escaping. */
size_t access_record_json(const access_record *r, char *out);

#endif
