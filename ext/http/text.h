/*
 * text.h - comparing the names of fields, and writing texts and numbers, once for all that do.
 */
#ifndef TEXT_H
#define TEXT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#if defined(__GNUC__)
#define ALWAYS_INLINE static inline __attribute__((always_inline))
#else
#define ALWAYS_INLINE static inline
#endif

static inline uint64_t load8(const void *p)
{
    uint64_t w;

    memcpy(&w, p, 8);
    return w;
}

static inline uint32_t load4(const void *p)
{
    uint32_t w;

    memcpy(&w, p, 4);
    return w;
}

/* Whether the `n` bytes at `at` are this lower-case word of letters, digits and '-', ignoring case.  n >= 4.  Setting bit 5
 * makes letters lower case, and it is already set in '-' and digits.  It would also equate some other characters, so it is
 * not for words that are not known. */
ALWAYS_INLINE bool text_is_word(const char *at, const char *word, size_t n)
{
    if (n < 8) {
        const uint32_t bit = 0x20202020u;
        return (load4(at) | bit) == load4(word) && (load4(at + n - 4) | bit) == load4(word + n - 4);
    }
    const uint64_t bits = 0x2020202020202020u;
    for (size_t i = 0; i + 8 < n; i += 8)
        if ((load8(at + i) | bits) != load8(word + i))
            return false;
    return (load8(at + n - 8) | bits) == load8(word + n - 8);
}

/* text_is_word() for a literal and a text of any length */
#define TEXT_IS(at, len, literal) \
    ((len) == sizeof(literal) - 1 && text_is_word((at), (literal), sizeof(literal) - 1))

/* Whether a field name is `name`, any token in lower case (RFC 9110 5.1). */
static inline bool text_is_name(const char *at, size_t len, const char *name, size_t name_len)
{
    if (len != name_len)
        return false;
    for (size_t i = 0; i < len; i++)
        if ((at[i] >= 'A' && at[i] <= 'Z' ? at[i] | 0x20 : at[i]) != name[i])
            return false;
    return true;
}

/* These return where the text ends. */

static inline char *text_put(char *to, const char *from, size_t len)
{
    memcpy(to, from, len);
    return to + len;
}

#define TEXT_PUT(to, literal) text_put((to), (literal), sizeof(literal) - 1)

static inline char *text_put_octet(char *to, uint8_t octet)
{
    if (octet >= 100)
        *to++ = (char)('0' + octet / 100);
    if (octet >= 10)
        *to++ = (char)('0' + octet / 10 % 10);
    *to++ = (char)('0' + octet % 10);
    return to;
}

static inline char *text_put_number(char *to, uint64_t number, int min_digits)
{
    char digits[20];
    int n = 0;

    do {
        digits[n++] = (char)('0' + number % 10);
        number /= 10;
    } while (number > 0 || n < min_digits);
    while (n > 0)
        *to++ = digits[--n];
    return to;
}

/* The same without a copy: writes the digits at the end of `room`, and returns the first one. */
static inline char *text_digits(char room[20], uint64_t number)
{
    char *first = room + 20;

    do {
        *--first = (char)('0' + number % 10);
        number /= 10;
    } while (number > 0);
    return first;
}

#endif
