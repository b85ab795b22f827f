/* response.h - the Date line of responses that workers write, rendered once a second and thread. */
#ifndef RESPONSE_H
#define RESPONSE_H

#include <string.h>
#include <time.h>

#include "http/pages.h"

#define RESPONSE_DATE_SIZE 37

static const char *response_date(void)
{
    static _Thread_local time_t rendered;
    static _Thread_local char line[RESPONSE_DATE_SIZE + 1];
    char date[32];
    time_t now = time(NULL);

    if (now != rendered) {
        rendered = now;
        pages_date(now, date);
        memcpy(line, "Date: ", 6);
        memcpy(line + 6, date, 29);
        memcpy(line + 35, "\r\n", 2);
    }
    return line;
}

#endif
