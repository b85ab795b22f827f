/*
 * init.h - process 1 of a container: forwards signals to the service, its child, and reaps every process that ends.
 *
 * It is a fork of an interpreter that never runs again.  While both processes live, each page that the child writes to
 * would exist twice (5 MB), so this process unmaps what it does not need: the heap and the interpreter's arenas.  It keeps
 * the stack, the thread's block, and the data of the libraries.  So no function that allocates may be called here, and no
 * function for the first time by name, because the dynamic linker would then read the heap.
 *
 * This file includes no Python header, and must not.
 */
#ifndef INIT_H
#define INIT_H

#include <sys/types.h>

/* Forwards every signal to `child` and reaps processes until `child` ends; then exits with its exit code, or with 128 + the
 * signal that ended it.  The process must have a single thread. */
_Noreturn void init_watch_over(pid_t child);

#endif
