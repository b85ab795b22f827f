/*
 * init.h - process 1 of a container: passes signals on to the service, its child, and reaps every process that ends.
 *
 * It is a fork of an interpreter that never runs again.  As long as both lived, each page that the child writes to would be
 * there twice (5 MB), so this one gives back what it does not need: the heap and the interpreter's arenas.  What is left
 * are the stack, the thread's own block, and the data of the libraries: no function that allocates may be called here, and
 * none for the first time by name, for which the dynamic linker would look into the heap.
 *
 * This file includes no Python header, and must not.
 */
#ifndef INIT_H
#define INIT_H

#include <sys/types.h>

/* Passes every signal on to `child` and reaps whatever ends, until `child` does; ends this process with its exit code, or
 * 128 + the signal that ended it.  For a process with one thread. */
_Noreturn void init_watch_over(pid_t child);

#endif
