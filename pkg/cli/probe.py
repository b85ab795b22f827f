"""The command `probe`: asks the running server whether it is alive or ready.

It runs every few seconds in every container, so it does without argparse, http.client and the settings.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import suppress

from pkg.cli.terminal import complain, one_line

TYPE_CHECKING = False  # importing typing would take a quarter of the time of a probe
if TYPE_CHECKING:
    from typing import Any

__all__ = ["probe"]

_PROBE_HELP = """\
usage: python -m pkg probe [--ready] [--json] [--host HOST] [--port N] [--timeout S]

Asks the running server whether it is alive (/healthz), or with --ready whether it is ready (/readyz), and prints the
response.  Exits with 0 if its status is 200, otherwise with 1 (HEALTHCHECK allows no other code).  PKG_LIVENESS_PATH
and PKG_READINESS_PATH change the paths, as they do for the server.

  --ready      request /readyz
  --json       print JSON
  --host HOST  address of the server; default: the variable HOST, or the loopback address if HOST is a wildcard
  --port N     port of the server; default: the variable PORT, or 8080
  --timeout S  timeout in seconds for the whole exchange; default 2
"""
_ANSWER_SIZE = 16384


def probe(arguments: Sequence[str], environ: Mapping[str, str]) -> int:
    """Runs `probe` without argparse, http.client or the settings.  Returns 0 if the status is 200, otherwise 1."""
    import socket

    path = environ.get("PKG_LIVENESS_PATH") or "/healthz"
    options = {"--host": environ.get("HOST") or "0.0.0.0", "--port": environ.get("PORT") or "8080"}
    as_json = False
    rest = list(arguments)
    try:
        while rest:
            flag, equals, value = rest.pop(0).partition("=")
            if flag in ("-h", "--help"):
                print(_PROBE_HELP, end="")
                return 0
            if flag == "--ready":
                path = environ.get("PKG_READINESS_PATH") or "/readyz"
            elif flag == "--json":
                as_json = True
            elif flag in ("--host", "--port", "--timeout"):
                options[flag] = value if equals else rest.pop(0)
            else:
                raise ValueError(f"{flag!a} is not a flag (see --help)")
        port, timeout = int(options["--port"]), float(options.get("--timeout", "2").removesuffix("s"))
        if not 0 < port < 65536 or not 0 < timeout < 3600:
            raise ValueError("the port must be from 1 to 65535, and the timeout from 0 to 3600 seconds")
    except (ValueError, IndexError) as error:
        complain(f"probe: {error}")
        return 1

    host = options["--host"].strip("[]")
    hosts = {"0.0.0.0": ["127.0.0.1"], "::": ["::1", "127.0.0.1"]}.get(host, [host])
    deadline = time.monotonic() + timeout
    target = f"{path}?format=json" if as_json else path
    request = f"GET {target} HTTP/1.1\r\nHost: localhost\r\nUser-Agent: pkg-probe\r\nConnection: close\r\n\r\n".encode()
    reason = ""
    for host in hosts:
        try:
            # bytes, because a str would go through the IDNA codec, whose import takes longer than the probe.
            address: Any = (host.encode(), port)
            with socket.create_connection(address, timeout) as connection:
                connection.sendall(request)
                status, body = _read_answer(connection, deadline)
        except (OSError, ValueError) as error:
            reason = f"{host} port {port}: {error}"
            continue
        text = one_line(body) if not as_json else body.decode("utf-8", "replace").strip()
        _say(text or str(status))
        return 0 if status == 200 else 1
    complain(f"probe: {reason}")
    return 1


def _read_answer(connection: Any, deadline: float) -> tuple[int, bytes]:
    """Status and body of the response, which ends at its Content-Length or with the connection.

    Raises OSError on timeouts and network errors, ValueError if the response is not HTTP.
    """
    answer = b""
    while len(answer) < _ANSWER_SIZE:
        left = deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError("timed out")
        connection.settimeout(left)
        received = connection.recv(4096)
        answer += received
        head, blank, body = answer.partition(b"\r\n\r\n")
        if blank:
            lines = head.split(b"\r\n")
            lengths = [line[15:].strip() for line in lines[1:] if line[:15].lower() == b"content-length:"]
            if not received or (lengths and lengths[0].isdigit() and len(body) >= int(lengths[0])):
                break
        if not received:
            raise ValueError(
                "the response is not HTTP" if answer else "the server closed the connection without a response"
            )
    words = answer.split(b"\r\n", 1)[0].split()
    if len(words) < 2 or not words[0].startswith(b"HTTP/1.") or not words[1].isdigit():
        raise ValueError("the response is not HTTP")
    return int(words[1]), answer.partition(b"\r\n\r\n")[2]


def _say(text: str) -> None:
    with suppress(OSError, ValueError):  # a closed stdout does not change the verdict
        print(text, flush=True)
