"""What is said of the settings: the page docs/settings.md, and what `--help-all` adds to their help.

It reads no values; nobody loads it who serves.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pkg.settings.declared import HEADINGS, NAMED, SETTINGS, Settings
from pkg.settings.kinds import Setting

__all__ = ["markdown", "of_names"]

_PAGE = """\
# Settings

<!-- Written by `python -m pkg config --markdown >docs/settings.md`; what it says is in pkg/settings/declared.py. -->

A setting is given by a flag or by an environment variable; a flag wins. The flag of `drain_delay` is `--drain-delay`,
its variable is `PKG_DRAIN_DELAY`. An empty variable counts as not set. `app` is given without a flag:
`python -m pkg shop:app --drain-delay 2s`.

`python -m pkg config` prints every setting with its value, its default, and where the value came from. It exits with 2
and lists every fault if a value is wrong; so does the server, before it binds anything; only what libpq
does not accept of `DATABASE_URL` it finds right after that. An unknown variable that
begins with `PKG_` is a warning that names the nearest setting. Secrets are never printed.

`python -m pkg --help` shows the sixteen settings that people need first, `python -m pkg --help-all` every setting.

| kind of value | examples |
|---|---|
| duration | `500ms`, `2s`, `5m`, `1h`, `90`; a number without a unit is seconds |
| size | `65536`, `64k`, `64KiB`, `1MiB`; a number without a unit is bytes, and `k` is 1024 |
| truth | `true`, `yes`, `on`, `1`; `false`, `no`, `off`, `0`; as flags `--access-log` and `--no-access-log` |
| networks | `10.0.0.0/8,fd00::/8`; `unix` for Unix sockets |
| address | `0.0.0.0:8080`, `[::]:8080`, `:8080`, `unix:/run/app.sock`, `unix:app.sock?mode=660`, `fd:3`, `systemd` |
"""


def markdown() -> str:
    """The page of the settings, for docs/settings.md; a test compares the two."""

    def escaped(text: str) -> str:
        return text.replace("|", "\\|")

    lines = [_PAGE.rstrip()]
    for heading in HEADINGS.values():
        lines += ["", f"## {heading}", ""]
        lines += ["| setting | environment | default | range | what it does |", "|---|---|---|---|---|"]
        for setting in _below(heading):
            default, help = setting.show(setting.default), escaped(setting.help)
            default = f"`{default}`" if default else ""
            lines.append(f"| `{setting.name}` | `{setting.environment}` | {default} | {setting.bounds()} | {help} |")
        if text := of_names(heading):
            lines += ["", text]
    return "\n".join(lines)


# What is said below a heading of settings which exist for names as well.
_OF_NAMES = """\
Several databases: `{url}`, or `{file}`, declares one that the application gets by \
`pkg.connection("replica")`. Each name has settings of its own, by environment variables only: {variables}. \
What is not set for a name is as for the database without one, except for {own}."""


def of_names(heading: str) -> str:
    """What to add to the settings below a heading about their variables for names; "" if there are none."""
    if not any(setting.named for setting in _below(heading)):
        return ""
    own = [f"`{setting.name}`" for setting in NAMED if setting.named is not None and not setting.named.inherits]
    return _OF_NAMES.format(
        url=Settings.database_url.variable("replica"),
        file=Settings.database_url_file.variable("replica"),
        variables=", ".join(f"`{setting.variable('<name>')}`" for setting in NAMED),
        own=f"{', '.join(own[:-1])} and {own[-1]}",
    )


def _below(heading: str) -> Iterator[Setting[Any]]:
    current = ""
    for setting in SETTINGS:
        current = HEADINGS.get(setting.name, current)
        if current == heading:
            yield setting
