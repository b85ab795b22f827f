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
usage: python -m pkg probe [--ready] [--json] [--listen ADDRESS | --host HOST --port N] [--timeout S]

Asks the running server whether it is alive (/healthz), or with --ready whether it is ready (/readyz), and prints the
response.  Exits with 0 if its status is 200, otherwise with 1 (HEALTHCHECK allows no other code).  PKG_LIVENESS_PATH
and PKG_READINESS_PATH change the paths, as they do for the server.

It finds the server by the variables that the server reads: PKG_HEALTH; or the first address of PKG_LISTEN that is a
port or a Unix socket; or HOST and PORT.  If PKG_LISTEN names inherited sockets only, it asks the admin listener
(PKG_ADMIN), which answers the same pages.

  --ready           request /readyz
  --json            print JSON
  --listen ADDRESS  ask this address: host:port, :port or unix:PATH
  --host HOST       ask this address; default: the variable HOST, or the loopback address if HOST is a wildcard
  --port N          ask this port; default: the variable PORT, or 8080
  --timeout S       timeout in seconds for the whole exchange; default 2
"""
_ANSWER_SIZE = 16384


def probe(arguments: Sequence[str], environ: Mapping[str, str]) -> int:
    """Runs `probe` without argparse, http.client or the settings.  Returns 0 if the status is 200, otherwise 1."""
    path = environ.get("PKG_LIVENESS_PATH") or "/healthz"
    options: dict[str, str] = {}
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
            elif flag in ("--listen", "--host", "--port", "--timeout"):
                options[flag] = value if equals else rest.pop(0)
            else:
                raise ValueError(f"{flag!a} is not a flag (see --help)")
        timeout = float(options.get("--timeout", "2").removesuffix("s"))
        if not 0 < timeout < 3600:
            raise ValueError("the timeout must be from 0 to 3600 seconds")
        places = _places(options, environ)
    except (ValueError, IndexError) as error:
        complain(f"probe: {error}")
        return 1

    deadline = time.monotonic() + timeout
    target = f"{path}?format=json" if as_json else path
    request = f"GET {target} HTTP/1.1\r\nHost: localhost\r\nUser-Agent: pkg-probe\r\nConnection: close\r\n\r\n".encode()
    reason = ""
    for name, address in places:
        try:
            with _connect(address, timeout) as connection:
                connection.sendall(request)
                status, body = _read_answer(connection, deadline)
        except (OSError, ValueError) as error:
            reason = f"{name}: {error}"
            continue
        text = one_line(body) if not as_json else body.decode("utf-8", "replace").strip()
        _say(text or str(status))
        return 0 if status == 200 else 1
    complain(f"probe: {reason}")
    return 1


def _places(options: Mapping[str, str], environ: Mapping[str, str]) -> list[tuple[str, Any]]:
    """Where to ask, one after the other: a name for messages, and a host with a port, or the path of a Unix socket.

    Raises ValueError with what is wrong with a flag or a variable.
    """
    if "--host" in options or "--port" in options:
        if "--listen" in options:
            raise ValueError("--listen cannot be combined with --host or --port")
        return _tcp(options, environ)
    for name in ("--listen", "PKG_HEALTH", "PKG_LISTEN"):
        text = options.get(name) or environ.get(name, "").strip()
        if text:
            break
    else:
        return _tcp(options, environ)

    from pkg.settings.listen import parse_endpoints

    what = ""
    try:
        endpoints = parse_endpoints(text)
        if not any(_is_known(endpoint) for endpoint in endpoints):
            if name == "--listen":
                raise ValueError("must be host:port, :port or unix:PATH")
            what, name = f"{name} names no address to ask; the admin listener at ", "PKG_ADMIN"
            text = environ.get(name, "").strip() or "127.0.0.1:9901"
            if text.lower() == "off":
                raise ValueError("is off, and no other address is known: set PKG_HEALTH")
            endpoints = parse_endpoints(text)
        endpoint = next(endpoint for endpoint in endpoints if _is_known(endpoint))
    except StopIteration:
        raise ValueError(f"{name} names no address to ask: set PKG_HEALTH") from None
    except ValueError as error:
        raise ValueError(f"{name} {error}") from None  # without the text, which could be a secret by mistake
    if endpoint.kind == "unix":
        return [(str(endpoint), endpoint.path)]
    return [(f"{what}{place}", address) for place, address in _hosts(endpoint.host, endpoint.port)]


def _is_known(endpoint: Any) -> bool:
    """Whether its text tells where it is: not of inherited sockets, and not with a port that the kernel chooses."""
    return bool(endpoint.path or endpoint.port)


def _tcp(options: Mapping[str, str], environ: Mapping[str, str]) -> list[tuple[str, Any]]:
    host = options.get("--host") or environ.get("HOST") or "0.0.0.0"
    port = int(options.get("--port") or environ.get("PORT") or "8080")
    if not 0 < port < 65536:
        raise ValueError("the port must be from 1 to 65535")
    return _hosts(host.strip("[]"), port)


def _hosts(host: str, port: int) -> list[tuple[str, Any]]:
    hosts = {"0.0.0.0": ["127.0.0.1"], "::": ["::1", "127.0.0.1"]}.get(host, [host])
    # bytes, because a str would go through the IDNA codec, whose import takes longer than the probe.
    return [(f"{host} port {port}", (host.encode(), port)) for host in hosts]


def _connect(address: Any, timeout: float) -> Any:
    """A connected socket.  Raises OSError."""
    import socket

    if isinstance(address, tuple):
        return socket.create_connection(address, timeout)
    from struct import pack

    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        # While the backlog is full, connect() waits for this time (socket(7)).  A timeout of Python's makes the socket
        # one that does not block, and then connect() of a Unix socket fails at once (connect(2), EAGAIN).
        limit = pack("ll", int(timeout), int(timeout % 1 * 1e6) or 1)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, limit)
        connection.connect(address)
    except BaseException:
        connection.close()
        raise
    return connection


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
