"""The flags of `serve` and `config`: their help, and the settings that they and the environment make.

It only collects texts; `load()` converts and judges them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pkg.errors import ConfigurationError
from pkg.settings.declared import HEADINGS, SETTINGS, Settings, load

if TYPE_CHECKING:
    import argparse

__all__ = ["new_parser", "read"]

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
  3  start-up failed: the port is taken, the application cannot be imported or started, or libpq, a thread
     or memory is missing

signals:
  SIGTERM  drain: readiness fails at once; requests are still accepted for drain_delay; then the listener closes, and
           requests in flight have drain_timeout to finish; 1.5 s later the process ends with 1 in any case
  SIGHUP, SIGQUIT
           the same as SIGTERM, but with --workers SIGHUP replaces the workers one by one; a SIGHUP that was ignored
           at start (nohup) stays ignored
  SIGINT   the same as SIGTERM, without drain_delay
           A second signal more than 1 s later skips the delay; a third exits at once with 1.
  SIGUSR1  write every thread's stack to stderr
  As process 1 of a container it serves in a child process, forwards every signal to it, and reaps orphans.
"""


def read(
    command: str, arguments: list[str], environ: Mapping[str, str], commands: Sequence[str]
) -> tuple[Settings, argparse.Namespace | None]:
    """The settings, and the parsed flags if there were any.  Raises ConfigurationError with all faults.

    `commands`: words that cannot be the application, as they were meant as the command.
    """
    faults: list[str] = []
    options = None
    if not any(argument.startswith("-") for argument in arguments) and len(arguments) < 2:
        # The usual case in a container: every setting comes from the environment.  Importing argparse would take a
        # tenth of the start-up time.
        flags = {"app": arguments[0]} if arguments else {}
    else:
        options, unknown = _parser(command, is_full="--help-all" in arguments).parse_known_args(arguments)
        flags = {name: _typed(value) for name, value in vars(options).items() if name not in _OUTPUT_FORMS}
        faults = [_unknown_flag(argument) for argument in unknown if argument.startswith("-")]
        if faults:
            flags.pop("app", None)  # it was more likely meant as the unknown flag's value
        elif unknown:
            faults = [
                "unexpected argument: only one APP can be given"
            ]  # the argument is not shown: it could be a secret
    if flags.get("app") in commands:
        faults.append(f"{flags.pop('app')}: the command must come first: python -m pkg COMMAND [flags]")
    try:
        settings = load(environ, flags)
    except ConfigurationError as error:
        raise ConfigurationError([*faults, *error.faults]) from None
    if faults:
        raise ConfigurationError(faults)
    return settings, options


def _typed(value: Any) -> Any:
    """The text of what argparse has made: of a switch, or of a flag that was repeated."""
    if isinstance(value, bool):
        return "true" if value else "false"
    return ",".join(value) if isinstance(value, list) else value


def _unknown_flag(argument: str) -> str:
    from difflib import get_close_matches

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

    class Version(argparse.Action):
        def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
            print(_version())
            parser.exit()

    basic = [setting for setting in SETTINGS if setting.basic]
    if command == "serve":
        epilog = _COMMANDS + (_EXITS_AND_SIGNALS if is_full else _MORE.format(len(SETTINGS)))
    else:
        epilog = "" if is_full else f"--help-all shows all {len(SETTINGS)} settings."
    parser = new_parser(
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
            heading = HEADINGS[setting.name]
            group = parser.add_argument_group(heading, _of_names(heading) if is_full else None)
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
            action = "append" if setting.repeats else "store"
            group.add_argument(setting.flag, action=action, metavar=setting.kind.metavar, help=text, **common)
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


def _of_names(heading: str) -> str | None:
    import textwrap

    from pkg.settings.page import of_names

    return textwrap.fill(of_names(heading).replace("`", ""), 100, break_on_hyphens=False) or None


def new_parser(hint: str = "--help", **options: Any) -> argparse.ArgumentParser:
    """`hint`: the flag that an error message points to."""
    import argparse

    class Parser(argparse.ArgumentParser):
        def error(self, message: str) -> Any:
            raise ConfigurationError(f"{message} (see {hint})")

    return Parser(formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False, **options)


def _version() -> str:
    from pkg.diagnostics import installation

    try:
        driver = installation.show_driver(installation.driver())
    except ImportError as error:
        driver = installation.why_no_driver(error)
    return f"pkg {installation.version() or 'unknown'} (Python {installation.python_version()}; {driver})"
