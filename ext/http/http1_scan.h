/*
 * http1_scan.h - classes of bytes and how to find the first byte outside of one,
 * for http1.c alone.  Nothing here knows what HTTP means.
 *
 * Theory of operation
 * -------------------
 * scan() finds one end from one place; its answer takes some 20 cycles, and a
 * parser that asks twice per line waits for most of them.  So header lines are
 * read through a window instead: for each block of 64 bytes two masks say which
 * bytes end a name and which end a value.  They depend on the bytes alone, not
 * on what was parsed before, so the processor computes the next block while
 * lines are still taken out of this one, and the step from line to line is a
 * shift and a count of zeros.
 *
 * No byte outside of the caller's buffer is read: what is left at its end is
 * read in one piece with bytes before it, and shifted.
 *
 * -DHTTP1_PORTABLE leaves the plain C path alone; it has no window.
 */
#ifndef HTTP1_SCAN_H
#define HTTP1_SCAN_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "text.h"

#if defined(__GNUC__)
#define NOINLINE __attribute__((noinline))
#define COLD __attribute__((noinline, cold))
#define UNLIKELY(x) __builtin_expect(!!(x), 0)
#else
#define NOINLINE
#define COLD
#define UNLIKELY(x) (x)
#endif

#if !defined(HTTP1_PORTABLE) && defined(__GNUC__) && defined(__x86_64__)
#define HTTP1_X86 1
#include <immintrin.h>
#define TARGET_SSSE3 __attribute__((target("ssse3")))
#define TARGET_AVX2 __attribute__((target("avx2,bmi,bmi2")))
#elif !defined(HTTP1_PORTABLE) && defined(__GNUC__) && defined(__aarch64__) && __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
#define HTTP1_NEON 1
#include <arm_neon.h>
#endif

/* Classes ---------------------------------------------------------------- */

/* Byte c is a member if low[c & 15] & high[c >> 4], the form that vector table look-ups need. */
struct class {
    uint8_t low[16], high[16];
};

/* tchar (RFC 9110 5.6.2) */
static const struct class TOKEN = {
    {58, 63, 62, 63, 63, 63, 63, 63, 62, 62, 61, 21, 52, 21, 61, 28},
    {0, 0, 1, 2, 4, 8, 16, 32, 0, 0, 0, 0, 0, 0, 0, 0},
};

/* Bytes of a field value: VCHAR, obs-text, SP, HTAB (RFC 9110 5.5) */
static const struct class TEXT = {
    {6, 6, 6, 6, 6, 6, 6, 6, 6, 7, 6, 6, 6, 6, 6, 2},
    {1, 0, 2, 2, 2, 2, 2, 4, 2, 2, 2, 2, 2, 2, 2, 2},
};

/* VCHAR without '#' and '?'.  RFC 3986 does not allow "<>\^`{|} either, but browsers send some of them unencoded, and they
   are not ambiguous.  Bytes over 127 are accepted, as by nginx and gunicorn, since clients send UTF-8.  Fragments are
   refused. */
static const struct class PATH = {
    {6, 7, 7, 6, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 5},
    {0, 0, 1, 2, 4, 4, 4, 2, 4, 4, 4, 4, 4, 4, 4, 4},
};

/* PATH and '?' */
static const struct class QUERY = {
    {6, 7, 7, 6, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 3},
    {0, 0, 1, 2, 2, 2, 2, 4, 2, 2, 2, 2, 2, 2, 2, 2},
};

/* unreserved and sub-delims: a reg-name or IPv4address without pct-encoded (RFC 3986 3.2.2) */
static const struct class HOST = {
    {26, 31, 30, 30, 31, 30, 31, 31, 31, 31, 29, 7, 5, 7, 21, 12},
    {0, 0, 1, 2, 4, 8, 4, 16, 0, 0, 0, 0, 0, 0, 0, 0},
};

static inline bool is_in(const struct class *c, uint8_t byte) {
    return (c->low[byte & 15] & c->high[byte >> 4]) != 0;
}

static inline bool is_digit(uint8_t c) {
    return c >= '0' && c <= '9';
}

/* The value of a hexadecimal digit, otherwise -1. */
static inline int hex_value(uint8_t c) {
    if (is_digit(c))
        return c - '0';
    c |= 0x20;
    return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

static inline bool is_space(uint8_t c) {
    return c == ' ' || c == '\t';
}

/* Words ------------------------------------------------------------------ */

/* Is [p, end) this lower-case word, ignoring case? */
#define IS(p, end, literal) TEXT_IS((const char *)(p), (size_t)((end) - (p)), literal)

/* Scanning from one position --------------------------------------------- */

/* scan_*(c, base, p, end): the first byte of [p, end) that is not in the class, or end.
   The caller's buffer begins at base or before it. */

static const uint8_t *scan_bytes(const struct class *c, const uint8_t *p, const uint8_t *end) {
    while (p < end && is_in(c, *p))
        p++;
    return p;
}

static inline const uint8_t *scan_portable(const struct class *c, const uint8_t *base, const uint8_t *p,
                                           const uint8_t *end) {
    (void)base;
    if (c == &TEXT) {
        /* Eight at a time, as long as none of them is a control (including HTAB) or DEL. */
        const uint64_t ones = 0x0101010101010101u, high = 0x8080808080808080u;
        for (; end - p >= 8; p += 8) {
            const uint64_t w = load8(p), del = w ^ (ones * 0x7f);
            if ((((w - ones * 0x20) & ~w) | ((del - ones) & ~del)) & high) {
                const uint8_t *q = scan_bytes(c, p, p + 8);
                if (q < p + 8)
                    return q;
            }
        }
    }
    return scan_bytes(c, p, end);
}

/* Which bytes of a block of 64 end a name, and which end a value: bit i is set if byte i is not a tchar, or is not
   TEXT or is HTAB.  (HTAB would need a ninth bit below; it is rare enough to be handled separately.) */
struct block {
    uint64_t names, values;
};

/* Both classes in one look-up: the low six bits are those of TOKEN, the other two mean TEXT without HTAB. */
static const struct class LINE = {
    {250, 255, 254, 255, 255, 255, 255, 255, 254, 254, 253, 213, 244, 213, 253, 156},
    {0, 0, 129, 130, 132, 136, 144, 96, 128, 128, 128, 128, 128, 128, 128, 128},
};
#define LINE_TOKEN 0x3f

#ifdef HTTP1_X86
/* low & high for each of 32 bytes */
TARGET_AVX2 static inline __m256i look_up32(const struct class *c, __m256i bytes) {
    const __m256i nibble = _mm256_set1_epi8(15);
    const __m256i low = _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *)c->low));
    const __m256i high = _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *)c->high));
    return _mm256_and_si256(_mm256_shuffle_epi8(low, _mm256_and_si256(bytes, nibble)),
                            _mm256_shuffle_epi8(high, _mm256_and_si256(_mm256_srli_epi16(bytes, 4), nibble)));
}

/* Bit i: byte i is zero, or: bit 6 or 7 of byte i is set. */
TARGET_AVX2 static inline uint64_t zeros32(__m256i bytes) {
    return (uint32_t)_mm256_movemask_epi8(_mm256_cmpeq_epi8(bytes, _mm256_setzero_si256()));
}

TARGET_AVX2 static inline uint64_t high32(__m256i bytes) {
    return (uint32_t)_mm256_movemask_epi8(_mm256_adds_epu8(bytes, bytes));
}

TARGET_AVX2 static inline __m256i load32(const uint8_t *p) {
    return _mm256_loadu_si256((const __m256i *)p);
}

TARGET_AVX2 static inline const uint8_t *scan_avx2(const struct class *c, const uint8_t *base, const uint8_t *p,
                                                   const uint8_t *end) {
    uint64_t stops;
    for (; end - p >= 32; p += 32)
        if ((stops = zeros32(look_up32(c, load32(p)))) != 0)
            return p + __builtin_ctzll(stops);
    if (p == end || end - base < 32)
        return scan_bytes(c, p, end);
    stops = zeros32(look_up32(c, load32(end - 32))) >> (32 - (end - p));
    return stops ? p + __builtin_ctzll(stops) : end;
}

TARGET_AVX2 static inline struct block block_avx2(const uint8_t *p) {
    const __m256i token = _mm256_set1_epi8(LINE_TOKEN);
    const __m256i a = look_up32(&LINE, load32(p)), b = look_up32(&LINE, load32(p + 32));
    return (struct block){zeros32(_mm256_and_si256(a, token)) | zeros32(_mm256_and_si256(b, token)) << 32,
                          ~(high32(a) | high32(b) << 32)};
}

/* The same, 16 bytes at a time. */
TARGET_SSSE3 static inline __m128i look_up16(const struct class *c, __m128i bytes) {
    const __m128i nibble = _mm_set1_epi8(15);
    const __m128i low = _mm_loadu_si128((const __m128i *)c->low), high = _mm_loadu_si128((const __m128i *)c->high);
    return _mm_and_si128(_mm_shuffle_epi8(low, _mm_and_si128(bytes, nibble)),
                         _mm_shuffle_epi8(high, _mm_and_si128(_mm_srli_epi16(bytes, 4), nibble)));
}

TARGET_SSSE3 static inline uint64_t zeros16(__m128i bytes) {
    return (uint32_t)_mm_movemask_epi8(_mm_cmpeq_epi8(bytes, _mm_setzero_si128()));
}

TARGET_SSSE3 static inline uint64_t high16(__m128i bytes) {
    return (uint32_t)_mm_movemask_epi8(_mm_adds_epu8(bytes, bytes));
}

TARGET_SSSE3 static inline __m128i load16(const uint8_t *p) {
    return _mm_loadu_si128((const __m128i *)p);
}

TARGET_SSSE3 static inline const uint8_t *scan_ssse3(const struct class *c, const uint8_t *base, const uint8_t *p,
                                                     const uint8_t *end) {
    uint64_t stops;
    for (; end - p >= 16; p += 16)
        if ((stops = zeros16(look_up16(c, load16(p)))) != 0)
            return p + __builtin_ctzll(stops);
    if (p == end || end - base < 16)
        return scan_bytes(c, p, end);
    stops = zeros16(look_up16(c, load16(end - 16))) >> (16 - (end - p));
    return stops ? p + __builtin_ctzll(stops) : end;
}

TARGET_SSSE3 static inline struct block block_ssse3(const uint8_t *p) {
    const __m128i token = _mm_set1_epi8(LINE_TOKEN);
    const __m128i a = look_up16(&LINE, load16(p)), b = look_up16(&LINE, load16(p + 16));
    const __m128i c = look_up16(&LINE, load16(p + 32)), d = look_up16(&LINE, load16(p + 48));
    return (struct block){zeros16(_mm_and_si128(a, token)) | zeros16(_mm_and_si128(b, token)) << 16 |
                              zeros16(_mm_and_si128(c, token)) << 32 | zeros16(_mm_and_si128(d, token)) << 48,
                          ~(high16(a) | high16(b) << 16 | high16(c) << 32 | high16(d) << 48)};
}
#endif

#ifdef HTTP1_NEON
static inline uint8x16_t look_up16(const struct class *c, const uint8_t *p) {
    const uint8x16_t bytes = vld1q_u8(p);
    return vandq_u8(vqtbl1q_u8(vld1q_u8(c->low), vandq_u8(bytes, vdupq_n_u8(15))),
                    vqtbl1q_u8(vld1q_u8(c->high), vshrq_n_u8(bytes, 4)));
}

/* Four bits for each byte that is zero: there is no movemask, but narrowing keeps a nibble of each byte. */
static inline uint64_t zeros16(uint8x16_t bytes) {
    return vget_lane_u64(vreinterpret_u64_u8(vshrn_n_u16(vreinterpretq_u16_u8(vceqzq_u8(bytes)), 4)), 0);
}

static inline const uint8_t *scan_neon(const struct class *c, const uint8_t *base, const uint8_t *p,
                                       const uint8_t *end) {
    uint64_t stops;
    for (; end - p >= 16; p += 16)
        if ((stops = zeros16(look_up16(c, p))) != 0)
            return p + __builtin_ctzll(stops) / 4;
    if (p == end || end - base < 16)
        return scan_bytes(c, p, end);
    stops = zeros16(look_up16(c, end - 16)) >> (4 * (16 - (end - p)));
    return stops ? p + __builtin_ctzll(stops) / 4 : end;
}

/* Bit i: byte i has none of these bits.  Keep another bit in each of eight, add neighbours three times. */
static inline uint64_t without64(const uint8x16_t *bytes, uint8_t bits) {
    static const uint8_t powers[16] = {1, 2, 4, 8, 16, 32, 64, 128, 1, 2, 4, 8, 16, 32, 64, 128};
    const uint8x16_t power = vld1q_u8(powers), mask = vdupq_n_u8(bits);
    uint8x16_t part[4], sum;
    for (int i = 0; i < 4; i++)
        part[i] = vbicq_u8(power, vtstq_u8(bytes[i], mask));
    sum = vpaddq_u8(vpaddq_u8(part[0], part[1]), vpaddq_u8(part[2], part[3]));
    return vgetq_lane_u64(vreinterpretq_u64_u8(vpaddq_u8(sum, sum)), 0);
}

static inline struct block block_neon(const uint8_t *p) {
    const uint8x16_t bytes[4] = {look_up16(&LINE, p), look_up16(&LINE, p + 16), look_up16(&LINE, p + 32),
                                 look_up16(&LINE, p + 48)};
    return (struct block){without64(bytes, LINE_TOKEN), without64(bytes, (uint8_t)~LINE_TOKEN)};
}
#endif

/* A constant in each caller, so that the other branches are not compiled. */
enum isa { PORTABLE, SSSE3, AVX2, NEON };

ALWAYS_INLINE const uint8_t *scan(enum isa isa, const struct class *c, const uint8_t *base, const uint8_t *p,
                                  const uint8_t *end) {
#ifdef HTTP1_X86
    if (isa == AVX2)
        return scan_avx2(c, base, p, end);
    if (isa == SSSE3)
        return scan_ssse3(c, base, p, end);
#endif
#ifdef HTTP1_NEON
    if (isa == NEON)
        return scan_neon(c, base, p, end);
#endif
    (void)isa;
    return scan_portable(c, base, p, end);
}

ALWAYS_INLINE struct block block(enum isa isa, const uint8_t *p) {
#ifdef HTTP1_X86
    if (isa == AVX2)
        return block_avx2(p);
    if (isa == SSSE3)
        return block_ssse3(p);
#endif
#ifdef HTTP1_NEON
    if (isa == NEON)
        return block_neon(p);
#endif
    (void)isa, (void)p;
    return (struct block){0, 0};
}

/* Scanning through a window ---------------------------------------------- */

struct window {
    const uint8_t *at, *end; /* the block begins at `at`; the buffer ends at `end` */
    struct block block;      /* no bit is set for bytes after the end */
};

ALWAYS_INLINE void window_read(enum isa isa, struct window *w) {
    const ptrdiff_t left = w->end - w->at;
    w->block = block(isa, left >= 64 ? w->at : w->end - 64);
    if (left < 64) {
        w->block.names >>= 64 - left;
        w->block.values >>= 64 - left;
    }
}

/* Where there is no window, it begins at the end. */
ALWAYS_INLINE void window_open(enum isa isa, struct window *w, const uint8_t *buf, const uint8_t *end) {
    *w = (struct window){end, end, {0, 0}};
    if (isa != PORTABLE && end - buf >= 64) {
        w->at = buf;
        window_read(isa, w);
    }
}

ALWAYS_INLINE bool window_next(enum isa isa, struct window *w) {
    if (w->end - w->at <= 64) {
        w->at = w->end;
        return false;
    }
    w->at += 64;
    window_read(isa, w);
    return true;
}

/* The first byte from p on in the current block that is not a tchar; NULL if there is none, or p is elsewhere. */
ALWAYS_INLINE const uint8_t *window_token(const struct window *w, const uint8_t *p) {
    const uint64_t names = p - w->at >= 0 && p - w->at < 64 ? w->block.names >> (p - w->at) : 0;
    return names ? p + __builtin_ctzll(names) : NULL;
}

/* Finds two ends at once: the first byte from p on that ends a name, and the first that ends a value.
   False if one of them is outside the block, or the name is longer than any known one. */
ALWAYS_INLINE bool window_line(enum isa isa, struct window *w, const uint8_t *p, const uint8_t **name_end,
                               const uint8_t **value_end) {
    uint64_t names, values;
    while (p - w->at >= 64)
        if (!window_next(isa, w))
            return false;
    if (UNLIKELY(p < w->at))
        return false;
    names = w->block.names >> (p - w->at);
    values = w->block.values >> (p - w->at);
    if (names == 0) { /* then no value ends here either */
        if (!window_next(isa, w) || w->block.names == 0)
            return false;
        p = w->at;
        names = w->block.names;
        values = w->block.values;
    }
    *name_end = p + __builtin_ctzll(names);
    while (values == 0) {
        if (!window_next(isa, w))
            return false;
        p = w->at;
        values = w->block.values;
    }
    *value_end = p + __builtin_ctzll(values);
    return true;
}

#endif
