/*
 * date.h - a second as text, in the two forms that responses and access records need.
 *
 * It is rendered once a second: the caller keeps the text, one for each thread or lock, and gives the time.
 */
#ifndef DATE_H
#define DATE_H

#include <stddef.h>
#include <time.h>

#define DATE_LINE_SIZE 37
#define DATE_STAMP_SIZE 19

typedef struct {
    time_t second; /* of which it is the text; not one of those asked for in the beginning: -1, or 0 for the time of day */
    char text[40];
} date_text;

void date_render_line(date_text *d, time_t second);
void date_render_stamp(date_text *d, time_t second);

/* A field line with an IMF-fixdate: "Date: Sun, 06 Nov 1994 08:49:37 GMT\r\n" (RFC 9110 5.6.7), and a terminating zero. */
static inline const char *date_line(date_text *d, time_t second)
{
    if (second != d->second)
        date_render_line(d, second);
    return d->text;
}

/* "1994-11-06T08:49:37" (RFC 3339, without zone). */
static inline const char *date_stamp(date_text *d, time_t second)
{
    if (second != d->second)
        date_render_stamp(d, second);
    return d->text;
}

#endif
