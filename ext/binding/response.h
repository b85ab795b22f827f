/* response.h - the Date line of responses that workers write, rendered once a second and thread. */
#ifndef RESPONSE_H
#define RESPONSE_H

#include <time.h>

#include "http/date.h"

static const char *response_date(void)
{
    static _Thread_local date_text line;

    return date_line(&line, time(NULL));
}

#endif
