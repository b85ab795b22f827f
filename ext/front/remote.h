/*
 * remote.h - exchange.h in a worker process, through an area (area.h) in place of clients' sockets.
 */
#ifndef REMOTE_H
#define REMOTE_H

#include "area.h"

int remote_open(front *f, int socket, int bell_fd);

/* The functions of front.h and exchange.h of the same names. */
int remote_take(front *f, front_request *out, int64_t timeout, int64_t *came); /* front_come() */
ssize_t remote_read(front *f, front_conn *c, char *buf, size_t len, bool wait);
bool remote_begin_response(front *f, front_conn *c);
int remote_send(front *f, front_conn *c, struct iovec *iov, int n, bool wait);
int remote_send_file(front *f, front_conn *c, int fd, off_t offset, uint64_t len);
void remote_trace(front_conn *c, const uint8_t *id);
unsigned remote_finish(front *f, front_conn *c, bool keep_alive, bool abort, unsigned status);
uint64_t remote_body_left(const front_conn *c);
int remote_serve_by_reader(front *f);
unsigned remote_look(front *f, bool begins); /* front_look(), or front_settle() */
int remote_await(front *f, front_conn *c, unsigned what, void *tag);
int remote_switch(front *f, front_conn *c);
int remote_run(front *f);
enum front_stage remote_stage(const front *f);
bool remote_is_draining(const front *f); /* the front is, so that connections are to be closed */
void remote_note_late(front *f); /* what front_count() counts; threads learn of it only when they send */
void remote_renew(front *f, unsigned slot, int64_t nanoseconds);
void remote_advance(front *f); /* the stage that is wanted has changed */
void remote_close(front *f);

#endif
