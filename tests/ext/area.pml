/*
 * area.pml - how requests go to worker processes and come back (area.h, carrier.h), for the model checker Spin.
 *
 * REQUESTS requests, some of which must not be repeated, go through the front to worker 0, with THREADS threads, and worker 1,
 * with one.  Worker 0 may be killed between any two steps.  Each access of a worker to shared memory is one step here, and so
 * is what the carrier does between two looks at what workers have written; `mutex` is the carrier's.  A wait that ends after
 * milliseconds may end at any time; a longer one is a wait for ever.
 *
 * Checked: in every order of the steps each request gets one response; none that a worker had not taken is refused; none is begun
 * a third time, and none twice that must not be; no slot stays in use.  Four rules can be taken away, to show that the check would
 * notice: NO_RECHECK, NO_SECOND_LOOK, NO_CAS, NO_TAIL.  With BY_READER an event loop serves in each worker.
 * With COMES, requests are long: the thread on duty waits for one, and takes it when it has the interpreter.
 */
#ifndef REQUESTS
#define REQUESTS 2
#endif
#ifndef THREADS
#define THREADS 2
#endif
#ifndef BACK
#define BACK 2                     /* so often a request is taken back, so that there is an end */
#endif
#define ROOM 2
#define NONE 255
#ifndef UNSAFE
#define UNSAFE 1                   /* so many of the requests must not be repeated */
#endif
#define SAFE(r) ((r) >= UNSAFE)

mtype = { NOTHING, COMPLETE, REFUSED, CUT };

mtype result[REQUESTS] = NOTHING;  /* what the client has got */
byte begun[REQUESTS];
bool repeated[REQUESTS];
bool was_taken[REQUESTS];
chan queue = [REQUESTS] of { byte };
chan again = [REQUESTS] of { byte };

typedef area_t {
    byte requests[REQUESTS * 2 + BACK + 1];
    byte head, tail;
    byte sleepers;
    bool asleep, wake;             /* of an event loop, and its eventfd */
    bool news[ROOM];
    bool sent[ROOM], ended[ROOM];  /* by the worker: the response, and its end */
    bool front_asleep;
}
area_t area[2];
byte slot[4] = NONE;               /* of both workers: the request in it */
bool client_has[4];                /* the carrier has sent the response */
bool alive[2] = true, lost[2];
bool mutex, bell, stops;           /* bell: the carrier's eventfd */
bool futex[THREADS + 1];           /* the thread sleeps */
#ifdef COMES
bool duty[2];                      /* of each worker: a thread is */
#endif
bool rung[THREADS + 1];            /* the area's bell has changed since the thread looked at it */
byte n_answered, n_back;

#define SLOT(w, s) slot[(w) * ROOM + (s)]
#define HAS_ROOM(w) (!lost[w] && (SLOT(w, 0) == NONE || SLOT(w, 1) == NONE))
#define IN_FLIGHT(w) ((SLOT(w, 0) != NONE) + (SLOT(w, 1) != NONE))
#define UNTAKEN(w) (area[w].head - area[w].tail)

inline answer(r, what) {
    assert(result[r] == NOTHING);
    result[r] = what;
    n_answered++
}

/* ------------------------------------------------------------------ a worker */

inline tell(w, s) {
    area[w].news[s] = true;
    if
    :: d_step { area[w].front_asleep -> area[w].front_asleep = false };
       bell = true
    :: else
    fi
}

inline pop() {                     /* got: a slot, or NONE */
    got = NONE;
    do
    :: at = area[w].tail;
       if
       :: at == area[w].head -> at = 0; break
       :: else
       fi;
       got = area[w].requests[at];
       if
#ifdef NO_CAS
       :: skip -> area[w].tail = at + 1; was_taken[SLOT(w, got)] = true; at = 0; break
#else
       :: d_step { area[w].tail == at -> area[w].tail = at + 1; was_taken[SLOT(w, got)] = true; at = 0 }; break
       :: else -> got = NONE
#endif
       fi
    od
}

inline serve() {
    begun[SLOT(w, got)]++;
    assert(begun[SLOT(w, got)] <= 1 + SAFE(SLOT(w, got)));
    area[w].sent[got] = true;
    tell(w, got);
    area[w].ended[got] = true;
    tell(w, got);
    got = NONE
}

proctype thread(byte w, me) {
    byte got = NONE, at;
    bool there = false;

    {
end:    do
        :: pop();
           if
           :: got != NONE -> serve()
#ifdef BY_READER
           :: else ->
              area[w].asleep = true;
#ifndef NO_SECOND_LOOK
              if
              :: area[w].tail != area[w].head -> area[w].asleep = false
              :: else -> d_step { area[w].wake -> area[w].wake = false }
              fi
#else
              d_step { area[w].wake -> area[w].wake = false }
#endif
#else
           :: else ->
#ifdef COMES
              atomic { !duty[w] -> duty[w] = true };
#endif
              rung[me] = false;
              area[w].sleepers++;
#ifndef NO_SECOND_LOOK
#ifdef COMES
              there = area[w].tail != area[w].head;
#else
              pop();
#endif
#endif
              if
              :: got != NONE || there
              :: else ->
                 if
                 :: d_step { !rung[me] -> futex[me] = true }; !futex[me]
                 :: else
                 fi
              fi;
              area[w].sleepers--;
#ifdef COMES
              pop();             /* with the interpreter; another thread that has it may have been faster */
              duty[w] = false;
#endif
              if
              :: got != NONE -> serve()
              :: else
              fi
#endif
           fi
        od
    } unless {
        atomic { !alive[w] || stops }
    }
}

proctype killer() {
    if
    :: alive[0] = false
    :: skip
    fi
}

/* ------------------------------------------------------------------ the front */

inline pump(w, s) {
    if
    :: SLOT(w, s) != NONE ->
       if
       :: area[w].ended[s] -> ended = true
       :: else -> ended = false
       fi;
       if
       :: area[w].sent[s] && !client_has[w * ROOM + s] -> client_has[w * ROOM + s] = true; answer(SLOT(w, s), COMPLETE)
       :: else
       fi;
       if
       :: ended -> SLOT(w, s) = NONE
       :: else
       fi
    :: else
    fi
}

inline take_news(w) {
    for (s : 0 .. ROOM - 1) {
        if
        :: d_step { !lost[w] && area[w].news[s] -> area[w].news[s] = false }; pump(w, s)
        :: else
        fi
    }
}

inline give(w, r) {
    s = (SLOT(w, 0) == NONE -> 0 : 1);
    d_step {                       /* a free slot is the front's */
        SLOT(w, s) = r;
        client_has[w * ROOM + s] = false;
        area[w].sent[s] = false;
        area[w].ended[s] = false;
        area[w].requests[area[w].head] = s
    };
    area[w].head++
}

inline give_away() {
    do
    :: (HAS_ROOM(0) || HAS_ROOM(1)) && (len(again) > 0 || len(queue) > 0) ->
       if
       :: len(again) > 0 -> again ? r
       :: else -> queue ? r
       fi;
       if
       :: HAS_ROOM(0) && (!HAS_ROOM(1) || IN_FLIGHT(0) <= IN_FLIGHT(1)) -> give(0, r)
       :: else -> give(1, r)
       fi
    :: else -> break
    od
}

#define COULD_TAKE_BACK(w) \
    (n_back < BACK && !lost[w] && UNTAKEN(w) > 0 && !lost[1 - w] && IN_FLIGHT(1 - w) < IN_FLIGHT(w))

/* If worker w has begun nothing of it for a while, and the other one is free. */
inline take_back(w) {
    if
    :: COULD_TAKE_BACK(w) ->
       if
       :: n_back++; at = area[w].tail;
          if
          :: at != area[w].head ->
             s = area[w].requests[at];
#ifdef NO_CAS
             area[w].tail = at + 1; again ! SLOT(w, s); SLOT(w, s) = NONE
#else
             if
             :: d_step { area[w].tail == at -> area[w].tail = at + 1 }; again ! SLOT(w, s); SLOT(w, s) = NONE
             :: else
             fi
#endif
          :: else
          fi
       :: skip                     /* it is not that long yet */
       fi
    :: else
    fi
}

inline wake_one(w) {
    if                             /* futex(FUTEX_WAKE, 1) */
    :: d_step { w == 0 && futex[0] -> futex[0] = false }
#if THREADS > 1
    :: d_step { w == 0 && futex[1] -> futex[1] = false }
#endif
    :: d_step { w == 1 && futex[THREADS] -> futex[THREADS] = false }
    :: else
    fi
}

inline ring_threads(w) {
    if
    :: w == 0 -> rung[0] = true; rung[THREADS - 1] = true
    :: else -> rung[THREADS] = true
    fi
}

inline rouse(w) {
#ifdef BY_READER
    if
    :: d_step { area[w].asleep -> area[w].asleep = false }; area[w].wake = true
    :: else
    fi
#else
    if
    :: !lost[w] && UNTAKEN(w) > 0 && area[w].sleepers > 0 -> ring_threads(w); wake_one(w)
    :: else
    fi
#endif
}

#define COULD_WAKE(w) (!lost[w] && UNTAKEN(w) > 0 && area[w].sleepers > 0)
#ifdef NO_RECHECK
#define FRESH_NEWS false
#else
#define FRESH_NEWS (NEWS(0) || NEWS(1))
#endif
#define NEWS(w) (!lost[w] && (area[w].news[0] || area[w].news[1]))

active proctype carrier() {
    byte r, s, at;
    bool ended;

    run thread(0, 0);
#if THREADS > 1
    run thread(0, 1);
#endif
    run thread(1, THREADS);
    run killer();
    do
    :: n_answered == REQUESTS && IN_FLIGHT(0) + IN_FLIGHT(1) == 0 -> break
    :: else ->
       d_step { !mutex -> mutex = true };
       atomic { area[0].front_asleep = false; area[1].front_asleep = false; bell = false };
       atomic { take_news(0) };
       atomic { take_news(1) };
       take_back(0);
       take_back(1);
       atomic { give_away() };
       atomic { r = 0; s = 0; at = 0; ended = false; rouse(0) };
       atomic { rouse(1) };
       atomic { area[0].front_asleep = true; area[1].front_asleep = true; r = 0; s = 0; at = 0; ended = false };
       d_step { ended = FRESH_NEWS || COULD_WAKE(0) || COULD_WAKE(1) || COULD_TAKE_BACK(0) || COULD_TAKE_BACK(1); mutex = false };
       if
       :: ended                     /* it does not wait, or milliseconds */
       :: bell
       :: len(queue) > 0 && (HAS_ROOM(0) || HAS_ROOM(1))
       :: n_answered == REQUESTS && IN_FLIGHT(0) + IN_FLIGHT(1) == 0
       fi;
       ended = false
    od;
    stops = true
}

active proctype client() {
    byte r;

    for (r : 0 .. REQUESTS - 1) {
        queue ! r
    }
}

/* front_lose_worker() */
active proctype undertaker() {
    byte s, at;
    bool ended;

    if
    :: stops
    :: atomic { !alive[0] && !mutex ->
       for (s : 0 .. ROOM - 1) {
           pump(0, s)
       }
#ifndef NO_TAIL
       for (at : area[0].tail .. area[0].head) {
           if
           :: at < area[0].head ->
              s = area[0].requests[at];
              again ! SLOT(0, s);
              SLOT(0, s) = NONE
           :: else
           fi
       }
#endif
       for (s : 0 .. ROOM - 1) {
           if
           :: SLOT(0, s) == NONE
           :: else ->
              if
              :: client_has[s]     /* all of it, here; otherwise it is cut */
              :: !client_has[s] && SAFE(SLOT(0, s)) && !repeated[SLOT(0, s)] ->
                 repeated[SLOT(0, s)] = true;
                 again ! SLOT(0, s)
              :: else ->
                 assert(was_taken[SLOT(0, s)]);
                 answer(SLOT(0, s), REFUSED)
              fi;
              SLOT(0, s) = NONE
           fi
       }
       lost[0] = true;
       bell = true }
    fi
}
