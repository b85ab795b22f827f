/*
 * last_words.h - what is written to stderr before the process may be killed, without the interpreter.
 */
#ifndef LAST_WORDS_H
#define LAST_WORDS_H

#include "state.h"

/* Writes a line to stderr if that does not block. */
void last_words_say(const char *format, ...) __attribute__((format(printf, 1, 2)));

static inline void last_words_init(front *f, int signal)
{
    f->last_words.signal = signal;
}

static inline bool last_words_are_wanted(const front *f)
{
    return f->last_words.signal != 0;
}

/* Writes to stderr: `why`, the requests in flight, and every Python stack (by the signal last_words). */
void last_words_write(front *f, const char *why);

#endif
