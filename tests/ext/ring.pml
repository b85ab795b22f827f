/*
 * ring.pml - how the bytes of one request go through a ring between the front and a worker (area.h), for Spin.
 *
 * A thread of the worker writes a response of BYTES through a ring of RING bytes, or, with INWARD, reads a body.  The carrier passes
 * on what the client takes or has sent, in parts of any size.  Each access to shared memory is one step.  The thread's sleep is for
 * ever here; in remote.c it ends after 100 ms, so that a wake-up that is lost would only be seen as a delay.
 *
 * Checked: in every order of the steps all bytes arrive, and nobody sleeps on.  Three rules can be taken away, to show that the
 * check would notice: NO_ROOM_CHECK (the thread looks whether the other end has moved since, not whether there is room),
 * NO_RECHECK (the carrier does not look again before it sleeps) and NO_FULL_CHECK (the same for a full ring).
 */
#ifndef RING
#define RING 2
#endif
#ifndef BYTES
#define BYTES 5
#endif

byte head, tail;
bool asleep, futex;                /* the thread says that it will sleep; it does */
bool news, front_asleep, bell;     /* from the worker; from here on the carrier sleeps; its eventfd */
bool in_full, wants;               /* as in the slot */
bool awaits;                       /* the carrier is told when the client takes or sends more */

inline tell_carrier() {
    news = true;
    if
    :: d_step { front_asleep -> front_asleep = false };
       bell = true
    :: else
    fi
}

inline tell_thread() {
    if
    :: d_step { asleep -> asleep = false; futex = false }
    :: else
    fi
}

inline sleep() {
    if
    :: d_step { asleep -> futex = true }; !futex
    :: else
    fi
}

#ifndef INWARD

/* remote_send() */
active proctype thread() {
    byte most, seen;

    do
    :: most = tail + RING;
       if
       :: most > BYTES -> most = BYTES
       :: else
       fi;
       if
       :: most > head -> head = most; tell_carrier()
       :: else
       fi;
       if
       :: head == BYTES -> break
       :: else
       fi;
       seen = tail;
       asleep = true;
#ifdef NO_ROOM_CHECK
       if
       :: tail == seen -> sleep()
       :: else
       fi
#else
       if
       :: head - tail == RING -> sleep()
       :: else
       fi
#endif
    od
}

/* drain() */
inline pump() {
    if
    :: head > tail ->
       if
       :: tail = head
       :: head - tail > 1 -> tail = tail + 1; awaits = true /* the client takes a part */
       fi;
       tell_thread()
    :: else
    fi
}

#else

/* remote_read() */
active proctype thread() {
    byte n, seen;

    do
    :: seen = head;
       if
       :: seen > tail ->
          n = seen - tail;
          if
          :: skip
          :: n > 1 -> n = 1        /* the application asks for less */
          fi;
          tail = tail + n;
          if
          :: in_full && (seen - tail) * 2 <= RING -> tell_carrier()
          :: else
          fi
       :: else ->
          if
          :: tail == BYTES -> break
          :: else
          fi;
          if
          :: !wants -> wants = true; tell_carrier()
          :: else
          fi;
          asleep = true;
          if
          :: head == tail -> sleep()
          :: else
          fi
       fi
    od
}

/* fill() */
inline pump() {
    do
    :: head == BYTES -> break
    :: head < BYTES && head - tail < RING ->
       if
       :: in_full = false; head = head + 1; tell_thread()
       :: awaits = true; break     /* the client has sent no more yet */
       fi
    :: head < BYTES && head - tail == RING ->
       in_full = true;
#ifdef NO_FULL_CHECK
       break
#else
       if
       :: head - tail == RING -> break
       :: else
       fi
#endif
    od
}
#endif

active proctype carrier() {
    do
    :: front_asleep = false;
       bell = false;
       news = false;
       awaits = false;
       pump();
       if
       :: tail == BYTES -> break
       :: else
       fi;
       front_asleep = true;
#ifndef NO_RECHECK
       if
       :: news
       :: else ->
#endif
          if
          :: bell
          :: awaits
          :: tail == BYTES
          fi
#ifndef NO_RECHECK
       fi
#endif
    od
}
