"""What the package promises to those who depend on it, read from the code: settings, log fields, metrics, names.

docs/compatibility.md says what each promise means.  docs/compatibility.json is this list as it stands, so that a change
of it is seen in review; `make compatibility` writes it anew.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import io
import json
import logging
import re
import socket
import subprocess
import sys
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path
from typing import Any

import pkg
from pkg import _core, errors
from pkg._core import LIMITS
from pkg.admin.pages import Pages
from pkg.cli import main as cli
from pkg.cli.admin import PAGES as ADMIN_COMMANDS
from pkg.database.database import _POOL_STATS
from pkg.diagnostics import metrics
from pkg.diagnostics.cgroup import Limits
from pkg.diagnostics.stacks import capture
from pkg.diagnostics.workers import ProcessRow
from pkg.health.checks import Check, Checker
from pkg.logs import sink as logs
from pkg.logs.records import json_access, json_record
from pkg.logs.sink import LogLines
from pkg.settings.declared import SETTINGS

# What applications import of pkg.integrations.
INTEGRATIONS = (
    ("pkg.integrations.asgi", "Unavailable"),
    ("pkg.integrations.django", "database"),
    ("pkg.integrations.django.middleware", "Unavailable"),
    ("pkg.integrations.django.readiness", "check_database"),
    ("pkg.integrations.sqlalchemy", "check_engine"),
    ("pkg.integrations.sqlalchemy_pool", "ServicePool"),
)
LIST = Path(__file__).parents[2] / "docs" / "compatibility.json"


def promises() -> dict[str, Any]:
    """The whole list, as plain data."""
    return {
        "settings": settings(),
        "commands": commands(),
        "exit_codes": exit_codes(),
        "signals": signals(),
        "names": names(),
        "health_pages": health_pages(),
        "admin_pages": admin_pages(),
        "log_fields": log_fields(),
        "loggers": loggers(),
        "metrics": metric_families(),
    }


def written(document: dict[str, Any]) -> str:
    """As it stands in the file: what fits on a line is on one, so that a change is a line of a diff."""
    return _written(document, "") + "\n"


def _written(value: Any, indent: str) -> str:
    line = json.dumps(value, ensure_ascii=False)
    if not isinstance(value, dict | list) or (indent and len(indent) + len(line) <= 110):
        return line
    inner = indent + "  "
    if isinstance(value, dict):
        rows = [f"{json.dumps(key)}: {_written(entry, inner)}" for key, entry in value.items()]
        return "{\n" + ",\n".join(inner + row for row in rows) + f"\n{indent}}}"
    return "[\n" + ",\n".join(inner + _written(entry, inner) for entry in value) + f"\n{indent}]"


# ------------------------------------------------------------------ command line


def settings() -> dict[str, Any]:
    return {
        setting.name: {
            "environment": setting.environment,
            "flag": setting.flag,
            "type": setting.kind.metavar,
            "default": setting.show(setting.default),
            "range": setting.bounds(),
            "secret": setting.secret,
            **({"former": [setting.former_environment, setting.former_flag]} if setting.former else {}),
        }
        for setting in SETTINGS
    }


def commands() -> dict[str, list[str]]:
    """Each command with the flags that are no settings."""
    found = {command: _flags(command) for command in cli.COMMANDS}
    found |= {f"admin {name}": _flags("admin", name) for name in ADMIN_COMMANDS}
    for command in ("serve", "config"):
        found[command] -= {setting.flag for setting in SETTINGS}
    return {command: sorted(flags) for command, flags in found.items()}


def _flags(*command: str) -> set[str]:
    flag = "--help-all" if command[0] in ("serve", "config") else "--help"
    return set(re.findall(r"^  (?:-h, )?(--[a-z][a-z-]*)", _help(*command, flag), re.MULTILINE))


@cache
def _help(*arguments: str) -> str:
    return subprocess.run(
        [sys.executable, "-m", "pkg", *arguments], capture_output=True, text=True, check=True, timeout=60
    ).stdout


def exit_codes() -> dict[str, list[str]]:
    """Each exit code of `--help` with the errors that end in it."""
    listed = _listed("exit codes")
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.Error)]
    return {
        code: sorted(kind.__name__ for kind in kinds if "exit_code" in vars(kind) and str(kind.exit_code) == code)
        for code in re.findall(r"^  (\d+)  ", listed, re.MULTILINE)
    }


def signals() -> list[str]:
    return sorted(set(re.findall(r"\bSIG[A-Z]+[0-9]?\b", _listed("signals"))))


def _listed(heading: str) -> str:
    """What `--help-all` says below a heading."""
    found = re.search(rf"^{heading}:\n((?:  .*\n)+)", _help("serve", "--help-all"), re.MULTILINE)
    assert found is not None
    return found[1]


# ------------------------------------------------------------------ names of the package


def names() -> dict[str, Any]:
    found = {name: _shape(getattr(pkg, name)) for name in sorted(pkg.__all__)}
    found["Server"]["limits"] = _front_arguments()
    return found | {f"{module}.{name}": _shape(_integration(module, name)) for module, name in INTEGRATIONS}


def _integration(module: str, name: str) -> Any:
    return getattr(importlib.import_module(module), name)


def _shape(thing: Any) -> dict[str, Any]:
    if not isinstance(thing, type):
        return {"signature": _signature(thing)}
    shape: dict[str, Any] = {"bases": [base.__name__ for base in thing.__mro__[1:-1] if base.__name__[0] != "_"]}
    members = {}
    for kind in reversed(thing.__mro__):  # what it has from classes of ours counts as its own
        if kind.__module__.startswith("pkg."):
            members.update(vars(kind))
    shape["members"] = {
        name: _signature(member) if callable(member) or isinstance(member, staticmethod) else _value(member)
        for name, member in sorted(members.items())
        if name == "__init__" or not name.startswith("_")
    }
    return shape


class _Annotation(str):
    """Shown as it is written, without quotes."""

    def __repr__(self) -> str:
        return str(self)


def _signature(function: Any) -> str:
    signature = inspect.signature(function)
    parameters = [p.replace(annotation=_annotation(p.annotation)) for p in signature.parameters.values()]
    return str(signature.replace(parameters=parameters, return_annotation=_annotation(signature.return_annotation)))


def _annotation(annotation: Any) -> Any:
    return _Annotation(annotation) if isinstance(annotation, str) else annotation


def _value(member: Any) -> str:
    return repr(member) if isinstance(member, bool | int | float | str) else "attribute"


def _front_arguments() -> dict[str, str]:
    """What Server takes beside its own arguments: the list of limits, and the stub of the C core."""
    stub = ast.parse((Path(pkg.__file__).parent / "_core.pyi").read_text())
    front = next(node for node in stub.body if isinstance(node, ast.ClassDef) and node.name == "Front")
    init = next(node for node in front.body if isinstance(node, ast.FunctionDef) and node.name == "__init__")
    assert all(argument.annotation is not None for argument in init.args.kwonlyargs)
    written = {argument.arg: ast.unparse(argument.annotation or argument) for argument in init.args.kwonlyargs}
    return {name: kind.__name__ for name, kind in LIMITS.items()} | written


# ------------------------------------------------------------------ pages


def _checker(publish: Callable[[Iterable[Any]], object], **options: Any) -> Checker:
    checker = Checker(publish=publish, renew=lambda slot, seconds: None, root=True, **options)
    checker.add(Check("database", lambda: None))
    checker.refresh()
    return checker


def health_pages() -> list[str]:
    """Paths with the default settings and a check called `database`; `/` only where there is no application."""
    tables: list[Iterable[Any]] = []
    _checker(tables.append)
    return sorted(page[0] for page in tables[-1])


def admin_pages() -> dict[str, Any]:
    """Methods and parameters of each page, the command that asks for it; all but /debug/profile take `format` alike."""
    pages = Pages(None, level=str, set_level=str, drain=str)  # type: ignore[arg-type]
    found = {}
    for path, (methods, page, _) in pages._table.items():
        source = inspect.getsource(page)
        parameters = re.findall(r"query\.(?:number|choice)\(\"(\w+)\"|query\.values\.get\(\"(\w+)\"", source)
        found[path] = {
            "methods": methods.split(", "),
            "parameters": sorted({"format", *(a or b for a, b in parameters)}),
            "command": next((name for name, (_, target, _) in ADMIN_COMMANDS.items() if target == path), None),
        }
    return found


# ------------------------------------------------------------------ log


def log_fields() -> dict[str, Any]:
    """Type of each field, and in which records it is: of requests (access), of logging (record), or both."""
    found: dict[str, dict[str, Any]] = {}
    for kind, line in _sample_records():
        for name, value in json.loads(line).items():
            field = found.setdefault(name, {"type": type(value).__name__, "in": set()})
            assert field["type"] == type(value).__name__, name
            field["in"].add(kind)
    return {name: {"type": field["type"], "in": sorted(field["in"])} for name, field in found.items()}


def _sample_records() -> Iterable[tuple[str, bytes]]:
    """One record of each shape."""
    yield (
        "access",
        json_access((1.0, "GET", "/", 200, 0.1, 1, 2, "::1", "curl", "a" * 32, "b" * 16, "c" * 32, "unix:/a")),
    )
    log = logging.getLogger("pkg.sample")
    ids = ("a" * 32, "b" * 16, "c" * 32)
    try:
        raise ValueError("sample")
    except ValueError:
        failed = log.makeRecord(log.name, logging.ERROR, __file__, 0, "failed", (), sys.exc_info())
    yield "record", json_record(failed, ids)
    stuck = log.makeRecord(log.name, logging.CRITICAL, __file__, 0, "stack of", (), None)
    stuck.stack_info = str(capture())
    yield "record", json_record(stuck, ids)
    yield "record", json_record(log.makeRecord(log.name, logging.INFO, __file__, 0, "%d", ("text",), None), ids)
    yield "record", _dropped()


def _dropped() -> bytes:
    """What the log says of lines that it has lost."""
    stream = io.StringIO()
    sink = logs.configure(format="json", level="critical", stream=stream)
    try:
        sink._refuse()
        assert sink.flush(10.0)
    finally:
        sink.close()
    return stream.getvalue().encode()


def loggers() -> list[str]:
    return sorted({*logs.OWN, *(f"pkg.{name}" for name in logs._BELOW), "pkg.access"})


# ------------------------------------------------------------------ metrics


class _Front:
    """A front that has seen a request of each kind."""

    def __init__(self, stats: _core.Counters) -> None:
        self.stats = lambda: stats

    def durations(self) -> list[tuple[str, int, list[int], float]]:
        counts = [1] * (len(_core.DURATION_BOUNDS) + 1)
        return [(method, status, counts, 1.0) for method, status in (("GET", 200), ("GET", 500), ("GET", 0))]

    def queue_waits(self) -> tuple[list[int], float]:
        return [1] * (len(_core.QUEUE_WAIT_BOUNDS) + 1), 1.0

    def exemplars(self) -> list[_core.Exemplar]:
        return []


def metric_families() -> dict[str, Any]:
    """Each family by the name that a query has for it, with its type and its labels; values where they are fixed."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        stats = _core.Front(listening.fileno()).stats()
    page = metrics.collect(
        front=_Front(stats),
        threads=1,
        phase="ready",
        health=_checker(lambda pages: None).report(),
        pools={"": dict.fromkeys(_POOL_STATS, 0)},
        logs=LogLines(0, 0, 0),
        proxy_waits=_Front(stats).queue_waits(),
        turns=metrics.Turns(*_Front(stats).queue_waits(), {"": 0.0, "1": 0.0}),
        executors=[metrics.Executor("asyncio", 1, 0, 0)],
        limits=Limits(*[1] * len(Limits._fields)),
        processes=[ProcessRow(1, 1, "serving", True, 1.0, 1, 1, 1.0, 1, 1)],
    )
    found = {}
    for family in page.document():
        labels: dict[str, set[str]] = {}
        for sample in family["samples"]:
            for name, value in sample["labels"].items():
                labels.setdefault(name, set()).add(value)
        total = "_total" if family["type"] == "counter" else ""
        found[f"{family['name']}{total}"] = {
            "type": family["type"],
            "labels": {name: sorted(values) if name in _ENUMERATED else "any" for name, values in labels.items()},
        }
        if family["type"] == "histogram":
            found[family["name"]]["labels"].pop("le")
            found[family["name"]]["bounds"] = sorted(float(bound) for bound in labels["le"] if bound != "+Inf")
    return found


_ENUMERATED = ("phase", "type", "db_client_connection_state", "url_scheme")


if __name__ == "__main__":
    LIST.write_text(written(promises()))
