/* response.h - the Date header of responses that workers write, rendered once a second and thread. */
#ifndef RESPONSE_H
#define RESPONSE_H

#include <time.h>

static const char *response_date(void)
{
    static _Thread_local time_t rendered;
    static _Thread_local char date[32];
    time_t now = time(NULL);

    if (now != rendered) {
        struct tm tm;
        rendered = now;
        gmtime_r(&now, &tm);
        strftime(date, sizeof date, "%a, %d %b %Y %H:%M:%S GMT", &tm);
    }
    return date;
}

#endif
