/* response.h - the Date header of responses that workers write, rendered once a second and thread. */
#ifndef RESPONSE_H
#define RESPONSE_H

#include <time.h>

#include "pages.h"

static const char *response_date(void)
{
    static _Thread_local time_t rendered;
    static _Thread_local char date[32];
    time_t now = time(NULL);

    if (now != rendered) {
        rendered = now;
        pages_date(now, date);
    }
    return date;
}

#endif
