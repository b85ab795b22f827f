/*
 * area.h - the memory that the front shares with one worker process: requests go in, responses come out.
 *
 * Theory of operation
 * -------------------
 * The front makes an area for each life of a worker and maps it, and so does the worker.  Its slots hold one request each:
 *
 *      free --the front fills it in, and pushes its number--> pushed --a thread takes it--> taken --`ended`--> free
 *
 * While a slot is free all of it belongs to the front.  From then on each field has one writer.  No lock is shared, so none can be
 * orphaned; a worker may be killed between any two instructions.  Bytes go through two rings for each slot, `in` and `out`.
 * Positions only grow while a request lasts, and begin at 0 again with the next one, so that few pages are touched.
 *
 *      field                          written by          order       guards
 *      free slot                      front               -           -
 *      requests[], head               front               release     the slot, up to in_head
 *      is_slow, by_reader, expires    worker              relaxed     nothing
 *      tail                           both, by CAS        seq_cst     who takes the slot: a thread, or the front that takes it back
 *      in_head, in_end                front               release     bytes of the ring `in`
 *      in_tail                        worker              release     room in `in`
 *      in_full, wants                 front, worker       seq_cst     whether the other one has to tell of room, of a wish
 *      out_head                       worker              release     bytes of the ring `out`, `begun`
 *      out_tail                       front               release     room in `out`
 *      traced, trace                  worker              relaxed     each other; both are seen with `ended`
 *      ended                          worker, once        release     everything; the slot is the front's again
 *      gone, left, late, stage, ...   front               relaxed     nothing
 *      news                           worker: or;   front: exchange   seq_cst    what was written before, per slot
 *      news_back                      front: or;   worker: exchange   seq_cst    the same in the other direction
 *      *asleep                        sleeper: 1;   waker: exchange 0 seq_cst    nothing is asleep unless it looked again after it said so
 *      sleepers, bell                 worker; both add    seq_cst     the same, for threads that wait for requests
 *
 * Whatever the front reads here it checks: a worker can only harm its own requests.  tests/ext/area.pml and ring.pml are models of
 * this for Spin.
 */
#ifndef AREA_H
#define AREA_H

#include "state.h"

#define AREA_MAGIC 0x61657261
#define AREA_VERSION 2
#define AREA_PAGE 4096
#define AREA_SLOTS 1024 /* at most */
#define AREA_WORDS (AREA_SLOTS / 64)

/* What the worker wants of a connection: to send a final response, or raw bytes in both directions. */
enum { AREA_BEGUN = 1, AREA_SWITCH = 2 };

/* The end of a request, in one word. */
enum { AREA_ENDED = 1, AREA_KEEP_ALIVE = 2, AREA_ABORT = 4, AREA_STATUS = 8 /* and up */ };

#ifndef AREA_STEP
#define AREA_STEP() ((void)0) /* before each write of a worker; a test ends the process here */
#endif

typedef struct area_slot {
    union proxy_peer peer;
    int64_t arrived;
    int64_t length;          /* of the body; -1: unknown */
    uint32_t listener, ring; /* the latter: size of either ring, in this request */
    bool repeated, expect;
    bool chunked;            /* and the body has not arrived */
    bool has_arrived;        /* the whole body has, also if the ring does not hold it yet */
    _Atomic uint64_t in_head, in_tail;
    _Atomic int in_end;      /* 0: more comes; 1: the body is complete; an error of front_read() */
    atomic_uint in_full, wants;
    _Atomic uint64_t out_head, out_tail;
    atomic_uint begun;       /* AREA_BEGUN or AREA_SWITCH */
    atomic_uint ended;
    atomic_uint gone, left;  /* the response has lost a part, or its reader; the client has sent FIN */
    _Atomic int late;        /* ANSWER_504 or ANSWER_CUT */
    atomic_uint asleep;      /* a futex for threads that wait for room or bytes */
    atomic_uint traced;      /* the next one is set */
    uint8_t trace[TALLY_TRACE];
    buffer in;               /* the head */
} area_slot;

typedef struct {
    uint32_t magic, version;
    uint64_t size;
    uint32_t n_slots, slot_size, in_at, out_at; /* of a slot: where its rings are */
    bool streams;

    _Alignas(64) _Atomic int stage; /* enum front_stage; a futex */
    _Atomic int retired;
    _Atomic uint32_t head;
    atomic_uint bell;
    _Atomic uint64_t news_back[AREA_WORDS];

    _Alignas(64) _Atomic uint32_t tail;
    atomic_uint sleepers;
    atomic_uint is_slow;      /* requests are long, so that more threads do more */
    atomic_uint by_reader;    /* an event loop serves, and is woken by the eventfd */
    atomic_uint asleep;       /* the event loop */
    _Alignas(64) atomic_uint front_asleep;
    _Atomic uint64_t news[AREA_WORDS];
    _Atomic int64_t expires[PAGES_SLOTS];

    _Alignas(64) _Atomic uint32_t requests[AREA_SLOTS];
} area;

#define AREA_SLOTS_AT ((sizeof(area) + AREA_PAGE - 1) / AREA_PAGE * AREA_PAGE)

static inline area_slot *area_slot_at(area *a, uint64_t stride, uint32_t number)
{
    return (area_slot *)((char *)a + AREA_SLOTS_AT + stride * number);
}

static inline void area_note(_Atomic uint64_t *news, uint32_t number)
{
    atomic_fetch_or(&news[number / 64], (uint64_t)1 << number % 64);
}

long area_wait(void *word, unsigned value, int64_t timeout); /* a futex; nanoseconds; < 0: forever */
void area_wake(void *word, int n);

/* Two descriptors through a socket, as one message: the area's memory, and the eventfd of its event loop. */
int area_send(int socket, const int fds[2]);
int area_receive(int socket, int fds[2]);

#endif
