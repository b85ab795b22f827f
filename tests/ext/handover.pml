/*
 * handover.pml - how connections change hands between the loop and the workers (front.h), for the model checker Spin.
 *
 * CLIENTS connections send REQUESTS requests each, also while one of theirs is being served; WORKERS threads serve them, and
 * lead the loop when they find nothing to do.  A step under queue.mutex is one atomic step here; leader.lead is a lock.  epoll
 * reports edges: bytes that arrive make one edge, once.  A wait that ends after a millisecond may end at any time; a longer
 * one is a wait for ever, as nothing may depend on its end.
 *
 * Checked: whatever the order of the steps, all requests are answered.  A request that nobody would look at again leaves all
 * processes blocked, which Spin reports as an invalid end state.  Three rules can be taken away, to show that the check would
 * notice: NO_PENDING, NO_PIPELINE, NO_SECOND_LOOK.
 *
 * With EVENTLOOP an event loop serves in place of the workers (eventloop.h).  Each request then has a second part, which may
 * come at any time after its head, and for which the event loop must not wait with its other requests.  Of its rules, five can
 * be taken away: NO_SEEN, NO_TOLD, NO_ROUSE, NO_RECHECK, NO_FRESH_NEWS.
 *
 * With ENOUGH, one busy worker may be enough from any turn to any other, and the others leave the queue to it: admission_is_full(),
 * or all that wait are held back, as a heavy request computes.
 *
 * With COMES, requests may become long and short again at any time: while they are long, a worker that finds one comes for it,
 * and takes what is there when it has the interpreter; one comes at a time, and the others sleep.
 *
 * With ELSEWHERE in addition to EVENTLOOP, that event loop waits elsewhere, for its eventfd, and while it may lead for the front's
 * epoll.  Of its rules, two can be taken away: NO_HEEDING_FIRST, NO_SETTLING.
 */
#ifndef CLIENTS
#define CLIENTS 2
#endif
#ifndef REQUESTS
#define REQUESTS 2
#endif
#ifndef WORKERS
#define WORKERS 2
#endif
#define ALL (CLIENTS * REQUESTS)

mtype = { LOOP, READY, TAKEN, RETURNED };

byte answered;                 /* requests */
byte in_socket[CLIENTS];       /* requests that have arrived and were not read */
byte in_buffer[CLIENTS];       /* requests that were read and not handed over */
bool edge[CLIENTS];            /* epoll will report it */
bool pending[CLIENTS];         /* M: an edge was seen while a worker had the connection */
bool again[CLIENTS];           /* CONN_AGAIN: to be looked at in the next turn */
mtype owner[CLIENTS] = LOOP;   /* READY, TAKEN and RETURNED are a worker's */
chan ready = [CLIENTS] of { byte };
byte n_returned, n_taken;      /* M */
byte n_idle, n_woken;          /* M */
bool asleep[WORKERS], woken[WORKERS];
bool ring;                     /* the eventfd */
bool lead;                     /* leader.lead is held */
bool relaxed, progress;        /* short requests are being finished */
bool batch[CLIENTS];           /* requests of this turn */
bool reported[CLIENTS];        /* events of this turn */
bool flush_batch;              /* the second look has made a batch: the next turn does not wait (loop_timeout) */
bool tell[WORKERS];            /* a worker will ring */
#ifdef ENOUGH
bool enough;                   /* M: admission_is_full() as soon as one is busy */
#define ARE_ENOUGH (enough && n_taken > 0)
#else
#define ARE_ENOUGH false
#endif
#define NONE (len(ready) == 0 || ARE_ENOUGH)
#ifdef COMES
#define ANOTHER_COMES (n_woken > 0)
#else
#define ANOTHER_COMES false
#endif

#ifdef EVENTLOOP
mtype = { BUSY, LEADING, ASLEEP };
byte parts[CLIENTS];           /* second parts that have arrived and were not read */
bool seen[CLIENTS];            /* M: an edge since the event loop last asked */
bool wanted[CLIENTS];          /* M: the event loop waits for one */
bool moved[CLIENTS];           /* M: it is to be told of one */
mtype doing = BUSY;            /* the event loop; M */
bool wake;                     /* its eventfd */
bool may_lead;                 /* what it waits for elsewhere includes the front's epoll; written with leader.lead held */
#define HAS_MOVED (moved[0] || moved[CLIENTS - 1])
#define ANY_EVENTLOOP_NEWS (len(ready) > 0 || HAS_MOVED)

inline rouse() {               /* eventloop_rouse(), with the mutex held, and the ring after it */
#ifndef NO_ROUSE
    if
    :: doing == ASLEEP -> doing = BUSY; wake = true
    :: else
    fi
#else
    skip
#endif
}

inline note(c) {               /* eventloop_note() */
    seen[c] = true;
    if
#ifdef NO_TOLD
    :: owner[c] == TAKEN && wanted[c] -> wanted[c] = false
#else
    :: owner[c] == TAKEN && wanted[c] -> wanted[c] = false; moved[c] = true; rouse()
#endif
    :: else
    fi
}
#endif

inline rouse_one() {           /* pop_idle(): any of them, which allows more than the stack does */
    if
    :: n_idle > 0 && asleep[0] && !woken[0] -> woken[0] = true
#if WORKERS > 1
    :: n_idle > 0 && asleep[1] && !woken[1] -> woken[1] = true
#endif
#if WORKERS > 2
    :: n_idle > 0 && asleep[2] && !woken[2] -> woken[2] = true
#endif
    fi;
    n_idle--;
    n_woken++
}

inline read_socket(c) {        /* conn_readable(), proceed(): one request at a time goes to a worker */
    in_buffer[c] = in_buffer[c] + in_socket[c];
    in_socket[c] = 0;
    if
    :: in_buffer[c] > 0 ->
        in_buffer[c]--;
        pending[c] = false;
#ifdef EVENTLOOP
        seen[c] = false;
#endif
        batch[c] = true
    :: else
    fi
}

inline take_back() {           /* the list under the mutex; what follows is the loop's own */
    atomic {
        k = 0;
        do
        :: k < CLIENTS ->
            if
            :: owner[k] == RETURNED ->
                owner[k] = LOOP;
                n_returned--;
                if
                :: in_buffer[k] > 0 -> again[k] = true
                :: in_buffer[k] == 0 && pending[k] -> pending[k] = false; read_socket(k)
                :: else
                fi
            :: else
            fi;
            k++
        :: else -> break
        od
    }
}

inline on_events() {           /* each event by itself: a worker may return the connection in between */
    e = 0;
    do
    :: e < CLIENTS ->
        atomic {
            if
            :: reported[e] && owner[e] == LOOP && !batch[e] -> reported[e] = false; read_socket(e)
            :: reported[e] && !(owner[e] == LOOP && !batch[e]) ->
                reported[e] = false;
                pending[e] = true;
#ifdef EVENTLOOP
                note(e)
#endif
            :: else
            fi;
            e++
        }
    :: else -> break
    od
}

inline hand_over(taking) {      /* handoff_pass() */
    atomic {
        k = 0;
        do
        :: k < CLIENTS ->
            if
            :: batch[k] -> batch[k] = false; owner[k] = READY; ready ! k
            :: else
            fi;
            k++
        :: else -> break
        od;
#ifdef ENOUGH
        if
        :: enough = true       /* judge() */
        :: enough = false
        fi;
#endif
        if
        :: !(taking) && !NONE && n_idle > 0 && (!relaxed || n_taken == 0) && n_woken == 0 -> rouse_one()
        :: !(taking) && !NONE && n_idle > 0 -> rouse_one() /* long requests, or it has waited for a millisecond */
        :: !(taking) && !NONE && n_idle > 0 && ((relaxed && n_taken > 0) || n_woken > 0) /* or not yet */
        :: taking || NONE || n_idle == 0
        fi;
#ifdef EVENTLOOP
        if
        :: nempty(ready) -> rouse()
        :: empty(ready)
        fi;
#endif
        look = n_returned > 0
    };
#ifndef NO_SECOND_LOOK
    if
    :: look -> take_back(); flush_batch = true
    :: else
    fi
#endif
}

/* loop_turn(): `waiting`: epoll_wait() may block. */
inline turn(waiting, taking) {
    if
    :: waiting ->              /* a millisecond while a request waits and a worker sleeps, otherwise until something happens */
        (ring || (nempty(ready) && n_idle > 0) || answered == ALL || flush_batch || edge[0] || again[0] ||
            edge[CLIENTS - 1] || again[CLIENTS - 1])
    :: !(waiting)
    fi;
    atomic {                   /* epoll_wait() takes the edges */
        flush_batch = false;
        ring = false;
        k = 0;
        do
        :: k < CLIENTS -> reported[k] = edge[k]; edge[k] = false; k++
        :: else -> break
        od
    };
    take_back();
    atomic {
        k = 0;
        do
        :: k < CLIENTS ->
            if
            :: again[k] && !batch[k] && owner[k] == LOOP -> again[k] = false; read_socket(k)
            :: else
            fi;
            k++
        :: else -> break
        od
    };
    on_events();
    hand_over(taking)
}


active [CLIENTS] proctype client() {
    byte sent = 0;

    do
    :: sent < REQUESTS ->
        atomic { in_socket[_pid]++; edge[_pid] = true; sent++ };
#ifdef EVENTLOOP
        atomic { parts[_pid]++; edge[_pid] = true }
#endif
    :: sent == REQUESTS -> break
    od
}

active proctype front() {
    byte k, e;
    bool look, napped = false;

    atomic { !lead -> lead = true };
    do
    :: answered < ALL ->
        atomic {
            if
#ifdef ELSEWHERE
            :: may_lead -> relaxed = true                     /* it has looked, or is given time */
            :: !progress -> may_lead = false; relaxed = false /* taken away */
            :: !may_lead -> relaxed = false
            :: progress && !may_lead -> may_lead = true; relaxed = true
#else
            :: progress -> relaxed = true
            :: relaxed = false /* none, or long ones */
#endif
            fi;
            progress = false
        };
        turn(!relaxed && !napped, false);
        if
        :: relaxed -> napped = true
        :: !relaxed && n_idle == 0 && n_taken > 0 -> napped = true
        :: !relaxed -> napped = false
        fi;
        if
        :: napped -> lead = false; atomic { !lead -> lead = true } /* naps on while another turns the loop: it comes later */
        :: else
        fi
    :: answered == ALL -> break
    od;
    lead = false
}

/* pop_ready(), with the mutex held */
inline pop_ready() {
    if
    :: !NONE ->
        ready ? c;
        owner[c] = TAKEN;
        n_taken++;
        got = true;
        if
        :: !NONE && n_idle > 0 && n_woken == 0 -> rouse_one() /* if requests are long */
        :: true
        fi
    :: NONE -> got = false
    fi
}

#ifndef EVENTLOOP
active [WORKERS] proctype worker() {
    byte k, e, c, me = _pid - CLIENTS - 1;
    bool look, got;

    do
    :: answered == ALL -> break
    :: answered < ALL ->
        if
        :: atomic { !NONE -> pop_ready() }
        :: atomic { NONE && !lead -> lead = true; got = false }; /* short requests: lead */
            do
            :: !got && answered < ALL ->
                turn(true, true);
#ifdef COMES
                if
                :: atomic { pop_ready() }
                :: break       /* requests have become long */
                fi
#else
                atomic { pop_ready() }
#endif
            :: got || answered == ALL -> break
            od;
            lead = false
#ifdef COMES
        :: atomic { !NONE && n_woken == 0 -> n_woken++; got = false }; /* waits for the interpreter */
            atomic { n_woken--; pop_ready() }
#endif
        :: atomic { NONE || ANOTHER_COMES -> asleep[me] = true; n_idle++; got = false }; /* somebody leads, or requests are long */
            atomic {
                woken[me] || answered == ALL;
                asleep[me] = false;
                if
                :: woken[me] -> woken[me] = false; n_woken--
                :: else -> n_idle--
                fi
            }
        fi;
        if
        :: got ->
            atomic {           /* front_finish() */
                owner[c] = RETURNED;
                n_returned++;
                n_taken--;
                answered++;
                progress = true;
                got = false;
#if defined NO_PENDING
                tell[me] = in_buffer[c] > 0
#elif defined NO_PIPELINE
                tell[me] = pending[c]
#else
                tell[me] = in_buffer[c] > 0 || pending[c]
#endif
            };
            if
            :: tell[me] -> ring = true
            :: else
            fi
        :: else
        fi
    od
}
#else

inline finish(c) {             /* front_finish(): the ownership ends in the same step as what the event loop waits for */
    atomic {
        owner[c] = RETURNED;
        wanted[c] = false;
        moved[c] = false;
        n_returned++;
        n_taken--;
        answered++;
        tell[0] = in_buffer[c] > 0 || pending[c]
    };
    if
    :: tell[0] -> ring = true
    :: else
    fi
}

inline go_on(c) {              /* a task: reads, and without the second part says that it waits */
    waits = false;
    do
    :: waits -> break
    :: !waits ->
        if
        :: atomic { parts[c] > 0 -> parts[c]-- }; finish(c); waits = true
        :: atomic { parts[c] == 0 -> skip };   /* -EAGAIN; the part may come before the next step */
            atomic {           /* front_await() */
#ifndef NO_SEEN
                if
                :: seen[c] -> seen[c] = false
                :: !seen[c] -> wanted[c] = true; waits = true
                fi
#else
                wanted[c] = true;
                waits = true
#endif
            }
        fi
    od
}

#ifdef ELSEWHERE
active proctype eventloop() {
    byte k, e, c;
    bool look, led, news, waits;

    wake = true;               /* it begins with front_settle(), which finds no less */
    do
    :: answered == ALL -> break
    :: answered < ALL ->       /* elsewhere; then front_look() */
        (wake || (may_lead && (ring || edge[0] || edge[CLIENTS - 1])) || answered == ALL);
        progress = true;
        doing = BUSY;
        if
        :: atomic { may_lead && !lead -> lead = true }; turn(false, true); lead = false; led = true
        :: atomic { lead || !may_lead -> led = false }
        fi;
#ifndef NO_HEEDING_FIRST
        if
        :: atomic { !led || !ANY_EVENTLOOP_NEWS -> skip }; wake = false
        :: atomic { led && ANY_EVENTLOOP_NEWS -> skip }
        fi;
#endif
        atomic {
            news = ANY_EVENTLOOP_NEWS;
            if
            :: !news -> doing = ASLEEP
            :: news
            fi
        };
#ifdef NO_HEEDING_FIRST
        wake = false;
#endif
        do
        :: !news -> break
        :: atomic { news && moved[0] -> moved[0] = false; c = 0 }; go_on(c)
        :: atomic { news && moved[CLIENTS - 1] -> moved[CLIENTS - 1] = false; c = CLIENTS - 1 }; go_on(c)
        :: atomic { news && nempty(ready) -> ready ? c; owner[c] = TAKEN; wanted[c] = false; n_taken++ }; go_on(c)
#ifdef NO_SETTLING
        :: atomic { news && !ANY_EVENTLOOP_NEWS -> skip }; doing = ASLEEP; break
#else
        :: atomic { news && !ANY_EVENTLOOP_NEWS -> doing = ASLEEP; break } /* front_settle() */
#endif
        od
    od
}
#else
active proctype eventloop() {
    byte k, e, c;
    bool look, news, waits;

    do
    :: answered == ALL -> break
    :: answered < ALL ->
        progress = true;       /* it looks */
        atomic { news = ANY_EVENTLOOP_NEWS };
        if
        :: atomic { !lead -> lead = true; doing = LEADING };
#ifndef NO_FRESH_NEWS
            atomic { news = ANY_EVENTLOOP_NEWS };
#endif
            do
            :: turn(!news, true);
                atomic { news = ANY_EVENTLOOP_NEWS };
                if
                :: news || answered == ALL -> break
                :: !news && answered < ALL
                fi
            od;
            doing = BUSY;
            lead = false
        :: atomic { lead -> skip };
            if
#ifdef NO_RECHECK
            :: atomic { !news -> doing = ASLEEP };
#else
            :: atomic { !ANY_EVENTLOOP_NEWS -> doing = ASLEEP };
#endif
                wake || answered == ALL;
                atomic { wake = false; doing = BUSY }
            :: atomic { ANY_EVENTLOOP_NEWS -> skip }
            fi
        fi;
        do
        :: atomic { moved[0] -> moved[0] = false; seen[0] = false; c = 0 }; go_on(c)
        :: atomic { moved[CLIENTS - 1] -> moved[CLIENTS - 1] = false; seen[CLIENTS - 1] = false; c = CLIENTS - 1 }; go_on(c)
        :: atomic { nempty(ready) -> ready ? c; owner[c] = TAKEN; wanted[c] = false; n_taken++ }; go_on(c)
        :: atomic { !ANY_EVENTLOOP_NEWS -> break }
        od
    od
}
#endif
#endif
