/* date.c - see date.h. */
#include "date.h"

#include <string.h>

#include "text.h"

/* strftime() would use the names of days and months of the locale. */
void date_render_line(date_text *d, time_t second)
{
    static const char days[] = "SunMonTueWedThuFriSat", months[] = "JanFebMarAprMayJunJulAugSepOctNovDec";
    struct tm t;

    gmtime_r(&second, &t);
    d->second = second;
    strftime(d->text, sizeof d->text, "Date:    , %d     %Y %H:%M:%S GMT\r\n", &t);
    memcpy(d->text + 6, days + 3 * t.tm_wday, 3);
    memcpy(d->text + 14, months + 3 * t.tm_mon, 3);
}

void date_render_stamp(date_text *d, time_t second)
{
    struct tm t;

    gmtime_r(&second, &t);
    d->second = second;
    strftime(d->text, sizeof d->text, "%Y-%m-%dT%H:%M:%S", &t);
}
