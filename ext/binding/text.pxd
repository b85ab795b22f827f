# Mirrors text.h, as far as it is used; the documentation is there.

from libc.stdint cimport uint8_t, uint64_t

cdef extern from "http/text.h" nogil:
    bint text_is_name(const char *at, size_t len, const char *name, size_t name_len)
    char *text_put_octet(char *to, uint8_t octet)
    char *text_digits(char *room, uint64_t number)
