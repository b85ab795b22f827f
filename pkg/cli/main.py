"""The command line: serve (default), probe, config, admin.

It makes no decision about serving.  A command imports only what it needs: `probe` runs every few seconds in every
container, and `serve` must install its signal handlers before anything slow is loaded.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence

from pkg.cli.terminal import complain, write

__all__ = ["COMMANDS", "main"]

COMMANDS = ("serve", "probe", "config", "admin")


def main(argv: Sequence[str] | None = None, environ: Mapping[str, str] | None = None) -> int:
    """Runs one command and returns its exit code.  Only `--help`, `--help-all` and `--version` raise SystemExit."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    environment = os.environ if environ is None else environ
    command = arguments.pop(0) if arguments and arguments[0] in COMMANDS else "serve"
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
    return Service(settings).run()


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
