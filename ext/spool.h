/*
 * spool.h - request bodies that neither their buffer nor their socket can hold, kept in files until they are whole.
 *
 * Theory of operation
 * -------------------
 * A disk can make whoever writes to it wait.  So a thread of its own owns a connection between spool_take() and
 * spool_finished(): it reads the socket, takes chunks apart, and writes to a file that has no name; the loop only learns
 * the result.  The thread is made with the first such body.  It does not read on before it has written, so where the disk
 * is slow the clients wait for it, and the time of that is not held against them.
 *
 * A file is made in `body_spool`.  Where that cannot be, it is one of memory, and a part of `buffer_size`.  All files
 * together hold `body_spool_size` bytes.  Beyond, or when the disk is full, a body comes back with FRONT_AGAIN: its
 * beginning is in the file, what had been read and not written in its buffer, and its worker reads on from the socket.
 *
 * A file is closed by the thread as well: to give its blocks back can take as long as to write them.
 */
#ifndef SPOOL_H
#define SPOOL_H

#include "front.h"

int spool_take(front *f, front_conn *c); /* L: FRONT_OK: the thread has it.  A negative errno: it does not */
front_conn *spool_finished(front *f);    /* L: one that has come back, or NULL; c->spool_result tells how */
ssize_t spool_read(front_conn *c, char *buf, size_t len); /* O: while there is more in the file; bytes, or -EIO */
void spool_drop(front *f, front_conn *c); /* L: gives up the file, if there is one */
void spool_stop(front *f);   /* L: the thread is to end */
void spool_close(front *f);  /* once nobody else uses the front */
void spool_disown(front *f); /* in a child that has no such thread */

#endif
