/*
 * access_record.h - renders an access record as a line of JSON if none of its texts needs escaping, as for nearly all requests.
 *
 * The lines equal those of json_access() in pkg/logs/records.py, which renders the other records; pkg/logs/schemas.py has the
 * names once more.
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

/* Whose names the members have; the numbers are those of pkg/logs/schemas.py. */
enum access_record_schema { ACCESS_RECORD_OTEL, ACCESS_RECORD_GCP, ACCESS_RECORD_ECS, ACCESS_RECORD_SCHEMAS };

typedef struct {
    int64_t when;     /* CLOCK_REALTIME, nanoseconds */
    int64_t duration; /* nanoseconds */
    uint64_t received, sent; /* bytes of the bodies */
    unsigned status;
    access_record_text method, path, client;
    access_record_text listener, agent, trace_id, span_id, request_id; /* omitted if empty */
    access_record_text trace_prefix; /* put before trace_id */
} access_record;

/* Renders into `out` (ACCESS_RECORD_MAX_SIZE bytes).  Returns the length with the newline, or 0 if the record is too long or a
 * text needs escaping. */
size_t access_record_json(const access_record *r, enum access_record_schema schema, char *out);

#endif
