/*
 * request_id.h - ids for requests that bring none.  They are unique, but not secret: whoever has seen some can compute others.
 *
 * Each thread has a generator of its own, seeded by the kernel, so that an id costs neither a system call nor a lock.
 */
#ifndef REQUEST_ID_H
#define REQUEST_ID_H

#define REQUEST_ID_SIZE 32

/* Writes 32 lowercase hexadecimal digits, without a terminating zero. */
void request_id_new(char out[REQUEST_ID_SIZE]);

#endif
