"""Variables of the environment that are, or look like, settings: names of databases, service links, typing errors.

It is loaded only where there are such variables.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from pkg.settings.kinds import Setting

__all__ = ["names_of", "not_names", "unknown"]

# Variables that Kubernetes sets in every container of a namespace for a Service called pkg, database-url or either with
# -something (kubernetes/kubernetes:pkg/kubelet/envvars/envvars.go).  They are not meant as settings.
_SERVICE_LINK = re.compile(
    r"(PKG|DATABASE_URL)_(\w+_)?"
    r"(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT_[0-9]+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)",
    re.ASCII,
)

_URL = "DATABASE_URL_"
_NAME = re.compile(r"[A-Z][A-Z0-9_]*")
_MAX_NAME = 40  # characters, so that the name of a check can contain it
# Names with another meaning: DATABASE_URL_FILE; what metrics and the log call the database without a name; those with
# which a variable would be that of a setting (PKG_POOL_TIMEOUT) or of a setting for another name.
_NOT_A_NAME = re.compile(r"FILE|MAIN|DATABASE|(TIMEOUT|MIN_SIZE|MAX_SIZE)(_.*)?")


def _is_service_link(variable: str, text: str) -> bool:
    if variable.endswith("PORT") and re.match(r"(tcp|udp|sctp)://", text):
        return True
    return _SERVICE_LINK.fullmatch(variable) is not None and not text.startswith("postgres")


def names_of(environ: Mapping[str, str]) -> tuple[tuple[str, ...], list[str]]:
    """The names of databases, in lower case, for which there is a variable with the URL or with its file, and the
    variables that cannot be for one.  `environ`: what begins with DATABASE_URL_."""
    found: set[str] = set()
    wrong = []
    for variable, text in environ.items():
        if not text.strip() or _is_service_link(variable, text.strip()):
            continue
        name = variable.removeprefix(_URL).removesuffix("_FILE")
        if _NAME.fullmatch(name) and len(name) <= _MAX_NAME and not _NOT_A_NAME.fullmatch(name):
            found.add(name.lower())
        else:
            wrong.append(variable)
    return tuple(sorted(found)), sorted(wrong)


def not_names(variables: Iterable[str]) -> Iterator[str]:
    """What to say about variables that cannot be the URL of a database with a name."""
    for variable in variables:
        yield (
            f"ignoring {ascii(variable)[1:-1]}: the name of a database is at most {_MAX_NAME} of A to Z, 0 to 9 and _, "
            "begins with a letter, and is not FILE, MAIN, DATABASE, TIMEOUT, MIN_SIZE or MAX_SIZE"
        )


def unknown(
    environ: Mapping[str, str], declared: Iterable[Setting[Any]], names: Sequence[str], named: Iterable[Setting[Any]]
) -> Iterator[str]:
    """What to say about variables that belong to no setting.  `declared`: all settings, with those for `names`.
    `named`: those which each name has."""
    # PKG_PORT is meant as PORT: well-known names are found under either spelling.
    spellings = {f"PKG_{setting.name.upper()}": setting.environment for setting in declared}
    spellings |= {setting.environment: setting.environment for setting in declared}
    for variable, text in environ.items():
        if _is_service_link(variable, text):
            continue
        if (found := _named_by(variable, named)) is not None:
            setting, name = found
            nearest = difflib.get_close_matches(name.lower(), names, n=1)
            hint = f": did you mean {setting.variable(nearest[0])}?" if nearest else ""
            yield f"{variable} has no effect without {_URL}{name}{hint}"
            continue
        nearest = difflib.get_close_matches(variable, spellings, n=1, cutoff=0.75)
        hint = f": did you mean {spellings[nearest[0]]}?" if nearest else ""
        yield f"{ascii(variable)[1:-1]} is not a setting{hint}"


def _named_by(variable: str, named: Iterable[Setting[Any]]) -> tuple[Setting[Any], str] | None:
    """The setting, and the name, if a variable is that of a setting for a name.

    PKG_POOL_ is left out, since most that begins with it is a mistyped setting of the pool.
    """
    for setting in named:
        name = variable.removeprefix(f"{setting.environment}_")
        if setting.environment != "PKG_POOL" and name != variable and _NAME.fullmatch(name):
            return setting, name
    return None
