/* request_id.c - see request_id.h. */
#include "request_id.h"

#include <stdint.h>
#include <sys/random.h>
#include <time.h>

/* xoroshiro128+ (Blackman and Vigna, "Scrambled linear pseudorandom number generators", 2021). */
static _Thread_local uint64_t state[2];

static uint64_t rotated(uint64_t x, int bits)
{
    return x << bits | x >> (64 - bits);
}

static uint64_t next(void)
{
    uint64_t a = state[0], b = state[1], result = a + b;

    b ^= a;
    state[0] = rotated(a, 24) ^ b ^ b << 16;
    state[1] = rotated(b, 37);
    return result;
}

static void seed(void)
{
    struct timespec now;

    if (getrandom(state, sizeof state, GRND_NONBLOCK) == (ssize_t)sizeof state && (state[0] | state[1]) != 0)
        return;
    clock_gettime(CLOCK_REALTIME, &now); /* so early after boot that the kernel has no randomness yet */
    state[0] = (uint64_t)now.tv_sec << 30 ^ (uint64_t)now.tv_nsec;
    state[1] = (uint64_t)(uintptr_t)&state | 1;
}

void request_id_new(char out[REQUEST_ID_SIZE])
{
    static const char digits[16] = "0123456789abcdef";

    if ((state[0] | state[1]) == 0)
        seed();
    for (int half = 0; half < 2; half++) {
        uint64_t bits = next();
        for (int i = 0; i < 16; i++, bits >>= 4)
            *out++ = digits[bits & 15];
    }
}
