"""The command line: serve (default), probe, config, admin.

It makes no decision about serving.  A command imports only what it needs: `probe` runs every few seconds in every
container, and `serve` must install its signal handlers before anything slow is loaded.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping, Sequence

from pkg.cli.terminal import complain, write

TYPE_CHECKING = False  # typing's, whose import would slow `probe` down
if TYPE_CHECKING:
    from typing import Any

    from pkg.service.service import Service
    from pkg.settings.declared import Settings

__all__ = ["COMMANDS", "main"]

COMMANDS = ("serve", "probe", "config", "admin")
TEMPLATE = "template"  # not for people: how process 1 starts the process that forks its workers


def main(argv: Sequence[str] | None = None, environ: Mapping[str, str] | None = None) -> int:
    """Runs one command and returns its exit code.  Only `--help`, `--help-all` and `--version` raise SystemExit."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    environment = os.environ if environ is None else environ
    command = arguments.pop(0) if arguments and arguments[0] in (*COMMANDS, TEMPLATE) else "serve"
    if command == "probe":
        from pkg.cli.probe import probe

        return probe(arguments, environment)

    from pkg.errors import Error

    try:
        if command == "config":
            return _config(arguments, environment)
        if command == "admin":
            from pkg.cli.admin import admin

            return admin(arguments, environment)
        if command == TEMPLATE:
            return _serve_template(arguments, environment)
        return _serve(arguments, environment)
    except Error as error:
        for line in str(error).splitlines():
            complain(line)
        return error.exit_code
    except BrokenPipeError:
        return 1  # `... | head`: there is no reader for a message either


def _serve(arguments: list[str], environ: Mapping[str, str]) -> int:
    _open_standard_descriptors()
    is_init = os.getpid() == 1
    if is_init:
        from pkg.supervisors.init import hold_signals, serve_in_child

        hold_signals()
    from pkg.cli.flags import read

    settings, _ = read("serve", arguments, environ, COMMANDS)
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
    if settings.workers:
        return _crew_service(settings, arguments).run()
    return Service(settings).run()


def _crew_service(settings: Settings, arguments: list[str]) -> Service:
    from pkg.diagnostics.cgroup import Cgroup
    from pkg.service.crew import CrewService
    from pkg.supervisors.crew import Crew, Rules
    from pkg.supervisors.template import Template

    rules = Rules(
        workers=settings.workers,
        min_ready=settings.min_ready_workers or (settings.workers + 1) // 2,
        max_requests=settings.max_requests,
        max_memory=settings.max_worker_memory,
        drain_timeout=settings.drain_timeout,
        liveness_timeout=settings.liveness_timeout,
    )
    cgroup = Cgroup()

    def oom_kills() -> int:
        return int(cgroup.look()[0].oom_kills or 0)

    return CrewService(
        settings, lambda front, bell, hello: Crew(rules, front, Template(arguments), bell, hello, oom_kills)
    )


def _serve_template(arguments: list[str], environ: Mapping[str, str]) -> int:
    """`arguments`: the descriptor of the line to process 1, and the arguments of `serve`."""
    import gc
    import socket

    from pkg.cli.flags import read
    from pkg.service.worker import WorkerService, import_parts
    from pkg.supervisors.line import Line
    from pkg.supervisors.template import end_with_process_1, serve_template

    end_with_process_1(int(arguments[0]))
    settings, _ = read("serve", arguments[1:], environ, COMMANDS)
    import_parts(settings)
    load = _preloaded(settings.app) if settings.preload and settings.app else None
    # What is there stays where it is: the collector of a worker would write to it, and each would have a copy.
    gc.collect()
    gc.freeze()

    def work(place: int, descriptors: Sequence[int]) -> int:
        area, bell, line, stacks = descriptors
        return WorkerService(settings, area, bell, Line(socket.socket(fileno=line)), stacks, load).run()

    return serve_template(int(arguments[0]), work)


def _preloaded(spec: str) -> Callable[[], Any]:
    """Imports the application, and returns what returns it, or raises what importing it has raised."""
    from pkg.errors import StartupError
    from pkg.service.loader import load

    try:
        app = load(spec)
    except StartupError as error:
        failure = error

        def fail() -> Any:
            raise failure

        return fail
    return lambda: app


def _open_standard_descriptors() -> None:
    """Opens /dev/null for each closed descriptor of 0, 1 and 2; otherwise a client's socket could become "stdout"."""
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest free number, which is this one


def _config(arguments: list[str], environ: Mapping[str, str]) -> int:
    from pkg.cli.flags import read

    settings, options = read("config", arguments, environ, COMMANDS)
    if options is not None and options.markdown:
        from pkg.settings.page import markdown

        write(f"{markdown()}\n".encode())
        return 0
    from pkg.service import databases

    databases.verify(settings.databases)
    rows = settings.describe()
    if options is not None and options.json:
        import json

        document = {
            "settings": [row._asdict() for row in rows],
            "warnings": settings.warnings,
            "notes": settings.notes,
        }
        write(json.dumps(document, indent=2).encode() + b"\n")
        return 0
    source = {"environment": "environment", "flag": "flag"}
    table = [("SETTING", "VALUE", "ORIGIN", "DEFAULT")]
    for row in rows:
        named = f"{row.origin} {getattr(row, source[row.origin])}" if row.origin in source else row.origin
        table.append((row.name, row.value or "-", named, row.default or "-"))
    widths = [max(len(line[column]) for line in table) for column in range(3)]
    lines = [[*(cell.ljust(width) for cell, width in zip(line, widths, strict=False)), line[3]] for line in table]
    write("".join(f"{'  '.join(line).rstrip()}\n" for line in lines).encode("utf-8", "backslashreplace"))
    for warning in settings.warnings:
        complain(f"warning: {warning}")
    for note in settings.notes:
        complain(f"note: {note}")
    return 0
