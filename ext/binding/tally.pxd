# Mirrors tally.h, in its order; the documentation is there.

from libc.stdint cimport int64_t, uint8_t, uint16_t, uint64_t


cdef extern from "front/tally.h" nogil:
    enum:
        TALLY_BUCKETS
        TALLY_SERIES

    ctypedef struct tally_series:
        uint16_t status
        uint8_t method
        uint8_t used
        uint64_t count[TALLY_BUCKETS]
        uint64_t sum

    enum:
        TALLY_TRACE
        TALLY_EXEMPLARS

    ctypedef struct tally_exemplar:
        uint8_t trace[TALLY_TRACE]
        int64_t duration
        int64_t when
        uint16_t status
        uint8_t method
        uint8_t bucket

    const int64_t tally_bounds[]

    enum:
        TALLY_WAITS

    ctypedef struct tally_waits:
        uint64_t count[TALLY_WAITS]
        uint64_t sum

    const int64_t tally_wait_bounds[]

    enum:
        TALLY_PROBERS
        TALLY_AGENT
        TALLY_PAGE

    ctypedef struct tally_who:
        uint8_t address[16]
        char agent[TALLY_AGENT]
        char page[TALLY_PAGE]
        uint8_t agent_len
        uint8_t page_len

    ctypedef struct tally_prober:
        tally_who who
        uint64_t count
        unsigned status
        int64_t last
