"""Requests the health pages of a service on a fixed schedule, and prints the status and latency of each.

It is a process of its own, so that the threads of a test do not add to the latencies.

    python -m tests.support.faults.watch PORT INTERVAL PATH...  prints "TIME PATH STATUS LATENCY" a line, until ended

TIME (when the answer came) is time.monotonic(), the same clock in every process; STATUS 0 is no answer.  PATH `-` is no
probe but how late this process woke up: what it cannot tell from the latency of a service on the same busy machine.
"""

from __future__ import annotations

import contextlib
import gc
import socket
import sys
import time


def _connect(port: int) -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", port), 5)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection


def main(port: int, interval: float, paths: list[str]) -> None:
    gc.disable()
    requests = [(path, f"GET {path} HTTP/1.1\r\nHost: watch\r\n\r\n".encode()) for path in paths]
    connection: socket.socket | None = None
    due = time.monotonic()
    while True:
        for path, request in requests:
            began = time.monotonic()
            status = 0
            try:
                connection = connection or _connect(port)
                connection.sendall(request)
                answer = connection.recv(4096)
                status = int(answer[9:12])
                if b"onnection: close" in answer:
                    connection.close()
                    connection = None
            except (OSError, ValueError):
                if connection is not None:
                    connection.close()
                connection = None
            now = time.monotonic()
            print(f"{now:.6f} {path} {status} {now - began:.6f}", flush=True)
        due = max(due + interval, time.monotonic() - 1)
        if (rest := due - time.monotonic()) > 0:
            time.sleep(rest)
            now = time.monotonic()
            print(f"{now:.6f} - 0 {now - due:.6f}", flush=True)


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt, BrokenPipeError):
        main(int(sys.argv[1]), float(sys.argv[2]), sys.argv[3:])
