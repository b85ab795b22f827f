/*
 * spool.h - keeps request bodies in files until they are complete, if neither their buffer nor their socket can hold them.
 *
 * Theory of operation
 * -------------------
 * Writing to a disk can block.  So a separate thread owns a connection between spool_take() and spool_finished(): it reads
 * the socket, decodes chunks, and writes to a file without a name; the loop only gets the result.  The thread is started
 * with the first such body.  It reads no more before it has written, so with a slow disk the clients wait for the disk, and
 * this time does not count against their timeouts.
 *
 * A file is created in `body_spool`.  If that fails, it is a file in memory, which counts towards `buffer_size`.  All files
 * together hold at most `body_spool_size` bytes.  Beyond that, or when the disk is full, a body comes back with
 * FRONT_AGAIN: its beginning is in the file, what has been read but not written is in its buffer, and its worker reads the
 * rest from the socket.
 *
 * At max_connections a body may have to give way to a request that is complete: the thread then returns the one that has
 * been waiting for its client the longest, with FRONT_E_DISPLACED.
 *
 * The thread also closes the files, because releasing their blocks can take as long as writing them.
 */
#ifndef SPOOL_H
#define SPOOL_H

#include "state.h"

int spool_take(front *f, front_conn *c); /* L: FRONT_OK if the thread has taken it, or a negative errno */
front_conn *spool_finished(front *f);    /* L: a connection that has come back, or NULL; c->spooled->result is its result */
/* L: makes the thread return one of the `n_spooling` bodies soon.  False if there is none that has not been asked. */
bool spool_displace(front *f, uint32_t n_spooling);
ssize_t spool_read(body_file *file, char *buf, size_t len); /* O: while there is more in it; bytes, or -EIO */
void spool_drop(front *f, front_conn *c); /* L: discards the file, if there is one */
void spool_stop(front *f);   /* L: tells the thread to end */
bool spool_close(front *f);  /* when nobody else uses the front.  False: the thread has not ended, as a disk blocks it */
void spool_count(front *f, front_counters *out);
void spool_disown(front *f); /* in a forked child, which does not have the thread */

#endif
