# Mirrors carrier.h, in its order; the documentation is there.

from libc.stdint cimport int64_t, uint32_t, uint64_t

from front cimport front, front_flight


cdef extern from "front/carrier.h" nogil:
    enum:
        PAGES_SLOTS

    enum front_outcome:
        FRONT_REPEATED
        FRONT_502
        FRONT_CUT

    ctypedef struct front_loss:
        front_flight flight
        front_outcome outcome

    ctypedef struct front_worker_state:
        uint32_t in_flight
        uint32_t queued
        uint64_t served
        int64_t expires[64]
        bint is_broken

    int front_open_workers(front *f)
    int front_carry(front *f)
    int front_add_worker(front *f, uint32_t threads, bint streams, uint32_t *number)
    int front_suit_worker(front *f, uint32_t number, uint32_t room, bint streams)
    int front_admit_worker(front *f, uint32_t number)
    int front_retire_worker(front *f, uint32_t number)
    int front_worker_now(front *f, uint32_t number, front_worker_state *out)
    ssize_t front_worker_requests(front *f, uint32_t number, front_flight *out, size_t max)
    ssize_t front_lose_worker(front *f, uint32_t number, front_loss *out, size_t max)
