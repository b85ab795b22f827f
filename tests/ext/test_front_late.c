/*
 * test_front_late.c - request_timeout: the loop answers in the worker's place, and only one of them does.
 *
 *     cc -g -fsanitize=address,undefined -Iext tests/ext/test_front_late.c ext/{http,front}/?*.c -pthread && ./a.out [--slow] [NAME]
 */
#include "rig.h"

#define GET(path) "GET " path " HTTP/1.1\r\nHost: x\r\n\r\n"

static void the_loop_answers(void)
{
    front_limits limits = rig_limits();
    rig r;
    client c;

    limits.request_timeout = 300 * MS;
    rig_start(&r, &limits, 1);
    rig_publish(&r);
    rig_hold(&r, true);
    dial(&r, &c);
    say(&c, GET("/hold"));
    reply a = hear(&c);
    REQUIRE(a.status == 504 && a.close, "%s", a.head);
    REQUIRE(rig_count(&r).late == 1 && rig_count(&r).request_timeouts == 1);
    rig_hold(&r, false);
    hear_end(&c); /* and no second answer */
    hang_up(&c);
    EVENTUALLY(rig_count(&r).late == 0);
    REQUIRE(rig_count(&r).aborted == 0 && rig_count(&r).request_timeouts == 1);
    tally_series series[TALLY_SERIES];
    size_t n = front_durations(r.f, series, TALLY_SERIES);
    REQUIRE(n == 1 && series[0].status == 504, "%zu", n);
    dial(&r, &c); /* the worker is well */
    say(&c, GET("/next"));
    REQUIRE(hear(&c).status == 200);
    hang_up(&c);
    rig_stop(&r);
}

/* Workers that end at the very moment of the timeout: each client gets one whole answer, 200 or 504. */
static void only_one_answers(void)
{
    front_limits limits = rig_limits();
    rig r;
    client c[8];
    int answers = 0, late = 0;

    limits.request_timeout = 20 * MS;
    rig_start(&r, &limits, 8);
    rig_publish(&r);
    for (int round = 0; round < 40; round++) {
        for (int i = 0; i < 8; i++) {
            dial(&r, &c[i]);
            say(&c[i], round % 2 ? GET("/late/20") : GET("/late/19"));
        }
        for (int i = 0; i < 8; i++) {
            reply a;
            if (hear_by(&c[i], &a, false, front_now() + PATIENCE)) {
                if (a.status <= 0 || a.cut) { /* in the middle of its response, or at its end */
                    hang_up(&c[i]);
                    continue;
                }
                REQUIRE(a.status == 200 || a.status == 504, "%s", a.head);
                answers++;
                late += a.status == 504;
                if (a.status == 504)
                    hear_end(&c[i]);
            }
            hang_up(&c[i]);
        }
    }
    REQUIRE(answers > 0 && late > 0, "%d %d", answers, late);
    rig_settle(&r);
    REQUIRE(rig_count(&r).late == 0);
    rig_stop(&r);
}

static const test tests[] = {
    {"the_loop_answers", the_loop_answers, 0},
    {"only_one_answers", only_one_answers, 0},
    {NULL, NULL, 0},
};

int main(int argc, char **argv)
{
    return rig_main(tests, argc, argv);
}
