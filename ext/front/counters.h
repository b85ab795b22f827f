/*
 * counters.h - the one list of what the front counts.
 *
 * Each line is a member of front_counters, an item of the binding's stats(), and a metric with its help (NULL: no metric).
 *
 *   EVENT   something that happens; whoever makes it happen calls count_add(); also a member of struct front.count
 *   STATE   how things are now; front_count() asks the file that knows
 *
 * A member that ends with _ns counts nanoseconds; its item ends with _seconds, and the item and the metric are in seconds.
 */
#ifndef COUNTERS_H
#define COUNTERS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define FRONT_COUNTERS(EVENT, STATE)                                                                                       \
    STATE(in_flight, "http_server_active_requests",                                                                        \
          "Requests in flight, including those that wait to be served.")                                                   \
    STATE(connections, "pkg_connections", "Client connections open now.")                                                  \
    STATE(websockets, "pkg_websockets", "WebSockets open now; they do not count as requests in flight.")                   \
    EVENT(websockets_opened, "pkg_websockets_opened", "WebSockets that the application has accepted.")                     \
    EVENT(accepted, "pkg_connections_accepted", "Client connections accepted.")                                            \
    EVENT(closed, "pkg_connections_closed", "Client connections closed; accepted minus closed are open.")                  \
    EVENT(resets, "pkg_connection_resets", "Connections that clients reset.")                                              \
    EVENT(too_late, "pkg_requests_too_late",                                                                               \
          "Requests that came when their idle connection had just been closed; lost, unless the client sends them again.") \
    EVENT(accept_errors, "pkg_accept_errors", "Connections not accepted for lack of descriptors or memory.")               \
    EVENT(requests, "pkg_requests", "Requests that came to wait to be served, or found the queue full.")                   \
    EVENT(served, "pkg_requests_served", "Requests whose complete response was passed to the connection.")                 \
    EVENT(aborted, "pkg_requests_aborted", "Requests cut off before their response was complete.")                         \
    EVENT(rejected, "pkg_requests_rejected", "Request heads that were not valid HTTP.")                                    \
    EVENT(shed, "pkg_requests_shed", "Requests refused because of max_connections, max_queue or buffer_size.")             \
    EVENT(timeouts, "pkg_timeouts",                                                                                        \
          "Requests that did not arrive in time, or waited too long to be served.")                                        \
    EVENT(request_timeouts, "pkg_request_timeouts", "Requests that took longer than request_timeout.")                     \
    STATE(late, "pkg_workers_late",                                                                                        \
          "Worker threads, or tasks, still busy with a request that took longer than request_timeout.")                    \
    EVENT(probes, "pkg_probes", "Responses to health probes.")                                                             \
    EVENT(stale, "pkg_probes_stale", "Probes that got 503 because the health pages had expired.")                          \
    EVENT(bytes_in, "pkg_received_bytes", "Bytes received from clients by the front.")                                     \
    EVENT(bytes_out, "pkg_sent_bytes", "Bytes sent to clients.")                                                           \
    STATE(buffered, "pkg_buffered_bytes", "Bytes of request bodies and responses buffered for slow clients.")              \
    EVENT(spooled, "pkg_bodies_spooled",                                                                                   \
          "Request bodies written to a temporary file before they were passed to a worker thread.")                        \
    EVENT(spool_failures, "pkg_spool_failures", "Request bodies that could not be spooled.")                               \
    STATE(spool_bytes, "pkg_spool_bytes", "Bytes of request bodies in temporary files.")                                   \
    STATE(queued, "pkg_queue_length", "Requests waiting for a worker thread, or for the event loop.")                      \
    EVENT(queue_ns, "pkg_queue_wait_seconds", "Total time that requests have waited for a worker thread, or for the event loop.") \
    STATE(finished, NULL, "Requests finished by workers; `served` are those whose whole response has been sent.")          \
    STATE(spool_error, NULL, "The errno value of the last body that could not be spooled; EFBIG: body_spool_size is used up.")

#define COUNTERS_MEMBER(name, ...) uint64_t name;
typedef struct {
    FRONT_COUNTERS(COUNTERS_MEMBER, COUNTERS_MEMBER)
} front_counters;

/* One line of the list. */
typedef struct {
    const char *name, *metric, *help;
    size_t offset;
    bool is_event;
} front_counter;

const front_counter *front_counter_at(unsigned i); /* NULL after the last one */
uint64_t front_counter_of(const front_counters *counters, const front_counter *line);

#endif
