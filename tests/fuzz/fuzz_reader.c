/*
 * fuzz_reader.c - fuzz_eventloop.c with an event loop that waits elsewhere, as uvloop: for the descriptor of the front.
 *
 *     clang -g -O1 -fsanitize=fuzzer,address,undefined -Iext tests/fuzz/fuzz_reader.c ext/{http,front}/?*.c -pthread
 *     ./a.out tests/fuzz/corpus/front
 */
#define ELSEWHERE
#include "fuzz_eventloop.c"
