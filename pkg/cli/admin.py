"""The command `admin`: asks the admin listener of the running server for a page, and prints it."""

from __future__ import annotations

import argparse
import http.client
from collections.abc import Mapping

from pkg.cli.flags import new_parser
from pkg.cli.terminal import one_line, write
from pkg.errors import Error
from pkg.logs.records import printable_json, printable_lines
from pkg.settings.declared import load
from pkg.settings.kinds import parse_address

__all__ = ["PAGES", "admin"]

# For each command: method, path and help text.
PAGES = {
    "status": (
        "GET",
        "/statusz",
        "show version, phase, settings, checks with their reasons, the pool, and who sends probes",
    ),
    "threads": ("GET", "/debug/threads", "show every thread's stack"),
    "requests": ("GET", "/debug/requests", "show requests in flight"),
    "tasks": ("GET", "/debug/tasks", "show the tasks of an ASGI application's event loop"),
    "pool": ("GET", "/debug/pool", "show the database pool"),
    "metrics": ("GET", "/metrics", "show metrics in Prometheus' text format or JSON"),
    "memory": ("GET", "/debug/memory", "show what allocated memory; --seconds turns tracing (tracemalloc) on"),
    "profile": (
        "GET",
        "/debug/profile",
        "sample stacks for some seconds; prints folded stacks, or with --json a speedscope file",
    ),
    "log-level": ("POST", "/debug/log-level", "change the log level for a while; then it reverts"),
    "drain": ("POST", "/drain", "drain and exit, like SIGTERM"),
}
_WILDCARDS = {"0.0.0.0": "127.0.0.1", "::": "::1"}
_FOR_A_WHILE = {
    "profile": "duration of sampling in seconds; default 10",
    "log-level": "time in seconds until the level reverts; default 300",
    "memory": "start to trace allocations, for this many seconds",
}


def admin(arguments: list[str], environ: Mapping[str, str]) -> int:
    """Returns 0.  Raises Error if there is no response, or another one than was wanted."""
    parser = new_parser(
        prog="python -m pkg admin", description="Queries the admin listener of the server in this container."
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, (_, _, text) in PAGES.items():
        command = commands.add_parser(name, help=text, description=text)
        command.add_argument("--json", action="store_true", help="print JSON")
        command.add_argument(
            "--timeout", type=_seconds, default=10.0, metavar="S", help="timeout in seconds; default 10"
        )
        command.add_argument("--admin", metavar="HOST:PORT", help="address of the admin listener [PKG_ADMIN]")
        command.add_argument(
            "--admin-token-file", metavar="PATH", help="file that contains its token [PKG_ADMIN_TOKEN_FILE]"
        )
        if name in _FOR_A_WHILE:
            command.add_argument("--seconds", type=_seconds, metavar="S", help=_FOR_A_WHILE[name])
        if name == "log-level":
            command.add_argument("level", metavar="LEVEL", choices=("debug", "info", "warning", "error", "critical"))
    options = parser.parse_args(arguments)

    # Only the settings of the admin listener are read: a fault in another one must not prevent a diagnosis.
    own = ("PKG_ADMIN", "PKG_ADMIN_TOKEN", "PKG_ADMIN_TOKEN_FILE")
    flags = {name: getattr(options, name) for name in ("admin", "admin_token_file") if getattr(options, name)}
    settings = load({name: environ[name] for name in own if name in environ}, flags)
    address = parse_address(settings.admin)
    if address is None:
        raise Error("the admin listener is off (PKG_ADMIN)")

    method, path, _ = PAGES[options.command]
    if options.command == "memory" and options.seconds is not None:
        method = "POST"
    query = [f"{key}={getattr(options, key):g}" for key in ("seconds",) if getattr(options, key, None) is not None]
    query += [f"level={options.level}"] if options.command == "log-level" else []
    timeout = options.timeout + (getattr(options, "seconds", None) or 10.0 if options.command == "profile" else 0.0)
    status, body = _ask(
        address,
        method,
        f"{path}?{'&'.join(query)}" if query else path,
        {"Accept": "application/json" if options.json else "text/plain"}
        | ({"Authorization": f"Bearer {settings.admin_token}"} if settings.admin_token else {}),
        timeout,
    )
    # The body goes to a terminal and may contain what clients have sent: escape sequences must not get through.
    clean = printable_json if options.json else printable_lines
    body = clean(body.decode("utf-8", "backslashreplace")).encode("utf-8", "backslashreplace")
    if status >= 300:
        raise Error(f"the admin listener responded with {status}: {one_line(body)}")
    write(body if body.endswith(b"\n") or not body else body + b"\n")
    return 0


def _ask(
    address: tuple[str, int], method: str, target: str, headers: Mapping[str, str], timeout: float
) -> tuple[int, bytes]:
    """Status and body of the response.  Raises Error if there is none."""
    host, port = _WILDCARDS.get(address[0], address[0]), address[1]
    connection = http.client.HTTPConnection(host, port, timeout=timeout)
    try:
        connection.request(method, target, headers=dict(headers))
        response = connection.getresponse()
        return response.status, response.read()
    except (OSError, http.client.HTTPException) as error:
        raise Error(f"no response from the admin listener at {host} port {port}: {error}") from None
    finally:
        connection.close()


def _seconds(text: str) -> float:
    try:
        value = float(text.removesuffix("s"))
    except ValueError:
        value = 0.0
    if not 0 < value <= 3600:
        raise argparse.ArgumentTypeError(f"{text!a} is not a number of seconds from 0 to 3600")
    return value
