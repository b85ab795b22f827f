"""The command line: serve (default), probe, config, admin.

It makes no decision about serving.  A command imports only what it needs: `probe` runs every few seconds in every
container, and `serve` must install its signal handlers before anything slow is loaded.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress

TYPE_CHECKING = False  # importing typing would take a quarter of the time of a probe
if TYPE_CHECKING:
    import argparse
    from typing import Any

    from pkg.settings.declared import Settings

__all__ = ["main"]

COMMANDS = ("serve", "probe", "config", "admin")
_OUTPUT_FORMS = ("json", "markdown")

_COMMANDS = """\
commands:
  serve [APP]   serve an application; the word serve may be left out
  probe         ask the running server whether it is alive, or with --ready whether it is ready; exit 0 or 1
  config        show every setting with its value, origin and default; if any is invalid, list all faults and exit 2
  admin         query the admin listener: status, threads, requests, pool, metrics, memory, profile, log-level, drain
  Each command has its own --help.
"""
_MORE = """
--help-all shows all {} settings, the exit codes and the signals.
"""
_EXITS_AND_SIGNALS = """
exit codes:
  0  drained without aborting a request
  1  requests were aborted, or the exit was forced; probe: not healthy; admin: refused or unreachable
  2  wrong usage or configuration
  3  start-up failed: the port is taken, the application cannot be imported, or libpq, a thread or memory is missing

signals:
  SIGTERM  drain: readiness fails at once; requests are still accepted for drain_delay; then the listener closes, and
           requests in flight have drain_timeout to finish; 1.5 s later the process ends with 1 in any case
  SIGHUP, SIGQUIT
           the same as SIGTERM; a SIGHUP that was ignored at start (nohup) stays ignored
  SIGINT   the same as SIGTERM, without drain_delay
           A second signal more than 1 s later skips the delay; a third exits at once with 1.
  SIGUSR1  write every thread's stack to stderr
  As process 1 of a container it serves in a child process, forwards every signal to it, and reaps orphans.
"""


def main(argv: Sequence[str] | None = None, environ: Mapping[str, str] | None = None) -> int:
    """Runs one command and returns its exit code.  Only `--help`, `--help-all` and `--version` raise SystemExit."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    environment = os.environ if environ is None else environ
    command = arguments.pop(0) if arguments and arguments[0] in COMMANDS else "serve"
    if command == "probe":
        return probe(arguments, environment)

    from pkg.errors import Error

    try:
        if command == "config":
            return _config(arguments, environment)
        if command == "admin":
            return _admin(arguments, environment)
        return _serve(arguments, environment)
    except Error as error:
        for line in str(error).splitlines():
            _complain(line)
        return error.exit_code
    except BrokenPipeError:
        return 1  # `... | head`: there is no reader for a message either


def _write(data: bytes) -> None:
    """Writes to stdout.  Raises BrokenPipeError if the reader has gone, Error if the write fails otherwise."""
    from pkg.errors import Error

    if sys.stdout is None:
        raise Error("cannot write to stdout: it is closed")
    try:
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()
    except OSError as error:
        # Otherwise the interpreter would try to flush stdout again at exit and print an error.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        if isinstance(error, BrokenPipeError):
            raise
        raise Error(f"cannot write to stdout: {error.strerror}") from None


def _complain(line: str) -> None:
    if sys.stderr is not None:
        print(f"pkg: {line}", file=sys.stderr)


# --- serve and config ----------------------------------------------------------------------------------------------


def _serve(arguments: list[str], environ: Mapping[str, str]) -> int:
    _open_standard_descriptors()
    is_init = os.getpid() == 1
    if is_init:
        from pkg.supervisors.init import hold_signals, serve_in_child

        hold_signals()
    settings, _ = _settings("serve", arguments, environ)
    try:
        from pkg.service.service import Service
    except ImportError as error:
        from pkg.errors import StartupError

        raise StartupError(f"the installation is incomplete: {error}") from error
    except MemoryError:
        from pkg.errors import StartupError

        raise StartupError("cannot start: out of memory") from None
    if is_init:
        serve_in_child()
    if settings.reload:
        from pkg.supervisors.reload import serve_again

        return serve_again(lambda: Service(settings).run())
    return Service(settings).run()


def _open_standard_descriptors() -> None:
    """Opens /dev/null for each closed descriptor of 0, 1 and 2; otherwise a client's socket could become "stdout"."""
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest free number, which is this one


def _settings(
    command: str, arguments: list[str], environ: Mapping[str, str]
) -> tuple[Settings, argparse.Namespace | None]:
    from pkg.errors import ConfigurationError
    from pkg.settings.declared import load

    faults: list[str] = []
    options = None
    if not any(argument.startswith("-") for argument in arguments) and len(arguments) < 2:
        # The usual case in a container: every setting comes from the environment.  Importing argparse would take a
        # tenth of the start-up time.
        flags = {"app": arguments[0]} if arguments else {}
    else:
        options, unknown = _parser(command, is_full="--help-all" in arguments).parse_known_args(arguments)
        texts = {True: "true", False: "false"}
        flags = {name: texts.get(value, value) for name, value in vars(options).items() if name not in _OUTPUT_FORMS}
        faults = [_unknown_flag(argument) for argument in unknown if argument.startswith("-")]
        if faults:
            flags.pop("app", None)  # it was more likely meant as the unknown flag's value
        elif unknown:
            faults = [
                "unexpected argument: only one APP can be given"
            ]  # the argument is not shown: it could be a secret
    if flags.get("app") in COMMANDS:
        faults.append(f"{flags.pop('app')}: the command must come first: python -m pkg COMMAND [flags]")
    try:
        settings = load(environ, flags)
    except ConfigurationError as error:
        raise ConfigurationError([*faults, *error.faults]) from None
    if faults:
        raise ConfigurationError(faults)
    return settings, options


def _unknown_flag(argument: str) -> str:
    from difflib import get_close_matches

    from pkg.settings.declared import SETTINGS
    from pkg.settings.other_servers import advice

    flag = argument.partition("=")[0]
    if instead := advice(argument):
        return f"{ascii(flag if flag[:2] == '--' else flag[:2])[1:-1]} is not a flag of this server; instead: {instead}"
    nearest = get_close_matches(flag, [setting.flag for setting in SETTINGS], n=1, cutoff=0.75)
    return f"{ascii(flag)[1:-1]} is not a flag{f': did you mean {nearest[0]}?' if nearest else ' (see --help-all)'}"


def _parser(command: str, *, is_full: bool) -> argparse.ArgumentParser:
    """The parser of `serve` and `config`.  It only collects texts; `settings.load` converts and judges them.

    `is_full`: its help shows every setting, otherwise only those marked `basic`.
    """
    import argparse

    from pkg.settings.declared import HEADINGS, SETTINGS

    class Version(argparse.Action):
        def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
            print(_version())
            parser.exit()

    basic = [setting for setting in SETTINGS if setting.basic]
    if command == "serve":
        epilog = _COMMANDS + (_EXITS_AND_SIGNALS if is_full else _MORE.format(len(SETTINGS)))
    else:
        epilog = "" if is_full else f"--help-all shows all {len(SETTINGS)} settings."
    parser = _new_parser(
        prog="python -m pkg" if command == "serve" else f"python -m pkg {command}",
        usage="python -m pkg [serve] [APP] [flags]" if command == "serve" else f"python -m pkg {command} [flags]",
        description="Serves /healthz and /readyz, and an application if APP is given."
        if command == "serve"
        else "Shows every setting with its value, origin and default. Secrets are redacted.",
        epilog=epilog,
        add_help=False,
        hint="--help-all",
    )
    parser.add_argument("-h", "--help", action="help", help=f"show the {len(basic)} settings that people need first")
    parser.add_argument("--help-all", action="help", help="show every setting")
    group: Any = parser
    for setting in SETTINGS:
        if setting.name in HEADINGS:
            group = parser.add_argument_group(HEADINGS[setting.name])
        default = setting.show(setting.default)
        facts = [setting.environment, f"default {default}" if default else "", setting.bounds()]
        text = f"{setting.help} [{', '.join(fact for fact in facts if fact)}]".replace("%", "%%")
        text = text if is_full or setting.basic else argparse.SUPPRESS
        common: dict[str, Any] = {"dest": setting.name, "default": argparse.SUPPRESS}
        if setting.flag == "APP":
            parser.add_argument("app", nargs="?", metavar="APP", help=text, default=argparse.SUPPRESS)
        elif isinstance(setting.default, bool):
            group.add_argument(setting.flag, action=argparse.BooleanOptionalAction, help=text, **common)
        else:
            group.add_argument(setting.flag, metavar=setting.kind.metavar, help=text, **common)
        if setting.former:
            hidden: dict[str, Any] = {"dest": setting.former, "default": argparse.SUPPRESS, "help": argparse.SUPPRESS}
            group.add_argument(setting.former_flag, **hidden)
    if command == "serve":
        parser.add_argument(
            "--version", action=Version, nargs=0, dest=argparse.SUPPRESS, help="show the versions and exit"
        )
    else:
        parser.add_argument("--json", action="store_true", help="print JSON")
        parser.add_argument("--markdown", action="store_true", help=argparse.SUPPRESS)  # docs/settings.md
    return parser


def _new_parser(hint: str = "--help", **options: Any) -> argparse.ArgumentParser:
    """`hint`: the flag that an error message points to."""
    import argparse

    from pkg.errors import ConfigurationError

    class Parser(argparse.ArgumentParser):
        def error(self, message: str) -> Any:
            raise ConfigurationError(f"{message} (see {hint})")

    return Parser(formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False, **options)


def _version() -> str:
    import platform

    from pkg.diagnostics import installation

    try:
        driver = installation.show_driver(installation.driver())
    except ImportError as error:
        driver = installation.why_no_driver(error)
    return f"pkg {installation.version() or 'unknown'} (Python {platform.python_version()}; {driver})"


def _config(arguments: list[str], environ: Mapping[str, str]) -> int:
    settings, options = _settings("config", arguments, environ)
    if options is not None and options.markdown:
        from pkg.settings.declared import markdown

        _write(f"{markdown()}\n".encode())
        return 0
    rows = settings.describe()
    if options is not None and options.json:
        import json

        document = {"settings": [row._asdict() for row in rows], "warnings": settings.warnings}
        _write(json.dumps(document, indent=2).encode() + b"\n")
        return 0
    source = {"environment": "environment", "flag": "flag"}
    table = [("SETTING", "VALUE", "ORIGIN", "DEFAULT")]
    for row in rows:
        named = f"{row.origin} {getattr(row, source[row.origin])}" if row.origin in source else row.origin
        table.append((row.name, row.value or "-", named, row.default or "-"))
    widths = [max(len(line[column]) for line in table) for column in range(3)]
    lines = [[*(cell.ljust(width) for cell, width in zip(line, widths, strict=False)), line[3]] for line in table]
    _write("".join(f"{'  '.join(line).rstrip()}\n" for line in lines).encode("utf-8", "backslashreplace"))
    for warning in settings.warnings:
        _complain(f"warning: {warning}")
    return 0


# --- admin ---------------------------------------------------------------------------------------------------------

_FOR_A_WHILE = {
    "profile": "duration of sampling in seconds; default 10",
    "log-level": "time in seconds until the level reverts; default 300",
    "memory": "start to trace allocations, for this many seconds",
}


def _admin(arguments: list[str], environ: Mapping[str, str]) -> int:
    from pkg.cli.client import PAGES, ask
    from pkg.errors import Error
    from pkg.settings.declared import load, parse_address

    parser = _new_parser(
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
    status, body = ask(
        address,
        method,
        f"{path}?{'&'.join(query)}" if query else path,
        {"Accept": "application/json" if options.json else "text/plain"}
        | ({"Authorization": f"Bearer {settings.admin_token}"} if settings.admin_token else {}),
        timeout,
    )
    # The body goes to a terminal and may contain what clients have sent: escape sequences must not get through.
    from pkg.logs.records import printable_json, printable_lines

    clean = printable_json if options.json else printable_lines
    body = clean(body.decode("utf-8", "backslashreplace")).encode("utf-8", "backslashreplace")
    if status >= 300:
        raise Error(f"the admin listener responded with {status}: {_one_line(body)}")
    _write(body if body.endswith(b"\n") or not body else body + b"\n")
    return 0


def _seconds(text: str) -> float:
    import argparse

    try:
        value = float(text.removesuffix("s"))
    except ValueError:
        value = 0.0
    if not 0 < value <= 3600:
        raise argparse.ArgumentTypeError(f"{text!a} is not a number of seconds from 0 to 3600")
    return value


# --- probe ---------------------------------------------------------------------------------------------------------

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
        _complain(f"probe: {error}")
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
        text = _one_line(body) if not as_json else body.decode("utf-8", "replace").strip()
        _say(text or str(status))
        return 0 if status == 200 else 1
    _complain(f"probe: {reason}")
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


def _one_line(body: bytes) -> str:
    """The first line; what is not printable ASCII is replaced, since an unknown server may have sent it."""
    lines = body.decode("utf-8", "replace").splitlines() or [""]
    return "".join(character if " " <= character <= "~" else "?" for character in lines[0][:500])


def _say(text: str) -> None:
    with suppress(OSError, ValueError):  # a closed stdout does not change the verdict
        print(text, flush=True)
