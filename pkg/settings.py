"""Every setting of the service, declared once: name, converter, default, bounds, help, environment variable, flag.

It reads an injected mapping and never acts on what it reads: parts are handed their own values, not this module.

The rules:
- A flag beats the environment, the environment beats the default.  An empty variable counts as not set.
- `load()` finds all faults before it raises, so that an operator puts everything right in one go.
- "0" never silently means "without limit": where 0 is allowed, the help says what it does.
- A secret is never printed: not by `describe()`, not by `repr()`, not in a fault.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from pkg._values import (
    ADDRESS,
    APP,
    BOOLEAN,
    DURATION,
    HIDDEN,
    HOST,
    INTEGER,
    NETWORKS,
    PAGE,
    PATH,
    PATH_PREFIX,
    PORT,
    SIZE,
    TOKEN,
    URL,
    Setting,
    choice,
    is_loopback,
    is_primary_wanted,
    parse_address,
    parse_database_url,
    read_secret,
    redact_url,
    show_address,
)
from pkg.errors import ConfigurationError

__all__ = [
    "HEADINGS",
    "SETTINGS",
    "Row",
    "Setting",
    "Settings",
    "load",
    "markdown",
    "parse_address",
    "parse_database_url",
    "read_secret",
    "redact_url",
    "show_address",
]

_DAY = 86400.0
_HOUR = 3600.0
_KIB, _MIB, _GIB, _TIB = 1 << 10, 1 << 20, 1 << 30, 1 << 40


# --- the settings --------------------------------------------------------------------------------------------------


class Row(NamedTuple):
    """One line of `config`, everything as text and fit to be shown."""

    name: str
    value: str
    origin: str  # default, environment, flag, file or implied
    default: str
    environment: str
    flag: str


class Settings:
    """The settings of one process: read-only attributes, made by `load()` only."""

    host = Setting(HOST, "0.0.0.0", "Address to listen on", environment="HOST", basic=True)
    port = Setting(PORT, 8080, "TCP port to listen on; 0 takes any free one", 0, 65535, environment="PORT", basic=True)
    app = Setting(
        APP,
        "",
        "module:attribute, a WSGI callable or an http.server handler class; package.module: its application or app; "
        "none: health pages only",
        flag="APP",
        basic=True,
    )
    script_name = Setting(
        PATH_PREFIX,
        "",
        "Path at which a proxy has mounted the WSGI application; taken off a request's path where the proxy has not",
        environment="SCRIPT_NAME",
    )
    reload = Setting(
        BOOLEAN,
        False,
        "For development: start again when a Python file below the current directory changes",
        basic=True,
    )
    threads = Setting(INTEGER, 8, "Worker threads, so many requests run at a time; more wait", 1, 1024, basic=True)
    trusted_proxies = Setting(
        NETWORKS, "", "Networks of proxies whose X-Forwarded headers and PROXY protocol are believed", basic=True
    )
    proxy_protocol = Setting(
        BOOLEAN, False, "Require the PROXY protocol on connections from trusted_proxies; without it they get 400"
    )
    proxy_protocol_optional = Setting(
        BOOLEAN, False, "Accept such connections without it, too: for proxies whose health checks send none"
    )

    pool = Setting(
        BOOLEAN,
        True,
        "false: DATABASE_URL is the application's own, whatever it holds; no pool and no database check",
    )
    database_url = Setting(
        URL,
        "",
        "postgresql:// URL; without it there is no pool and no database check",
        environment="DATABASE_URL",
        secret=True,
        basic=True,
    )
    database_url_file = Setting(
        PATH, "", "File with that URL, read again for each new connection", environment="DATABASE_URL_FILE"
    )
    database_role = Setting(
        choice("any", "primary"),
        "any",
        "primary: a read-only server fails the check (implied by target_session_attrs=read-write in the URL)",
    )
    pool_min_size = Setting(INTEGER, 2, "Connections kept open", 1, 1000)
    pool_max_size = Setting(INTEGER, 10, "Connections at most; who wants one more waits", 1, 1000, basic=True)
    pool_timeout = Setting(DURATION, 5.0, "Longest wait for a connection; then DatabaseUnavailable", 0.01, 600.0)
    connect_timeout = Setting(DURATION, 3.0, "Longest time to connect; then the attempt has failed", 1.0, 60.0)
    prepare_statements = Setting(
        BOOLEAN,
        True,
        "Prepare what a connection repeats; false behind PgBouncer before 1.24 with pool_mode=transaction",
    )
    check_interval = Setting(DURATION, 2.0, "Time between two checks of the database", 0.1, 60.0)

    max_connections = Setting(
        INTEGER,
        10000,
        "Connections at a time; a request on one more displaces an idle one, else only probes are answered",
        1,
        1_000_000,
    )
    max_queue = Setting(INTEGER, 1024, "Requests waiting for a thread; more get 503", 1, 1_000_000)
    max_header_size = Setting(SIZE, 32 * _KIB, "Bytes of a request's head; more get 431", _KIB, 65535)
    max_headers = Setting(INTEGER, 100, "Header fields of a request; more get 431", 8, 128)
    max_target_size = Setting(SIZE, 8 * _KIB, "Bytes of a request's target; more get 414", 64, 65535)
    max_body_size = Setting(SIZE, 100 * _MIB, "Bytes of a request's body; more get 413", 1, _TIB, basic=True)
    body_buffer_size = Setting(
        SIZE, 64 * _KIB, "Bytes of a body read before a thread is taken; the rest streams", _KIB, _GIB
    )
    response_buffer_size = Setting(SIZE, _MIB, "Bytes kept for a slow reader; beyond, its thread waits", _KIB, _GIB)
    buffer_size = Setting(
        SIZE, 32 * _MIB, "Bytes of all those buffers together; beyond, long heads get 503, the rest streams", _MIB, _TIB
    )

    header_timeout = Setting(DURATION, 10.0, "For a request's head to arrive; then 408", 0.1, _HOUR)
    body_timeout = Setting(DURATION, 30.0, "Without a byte of a request's body; then 408", 0.1, _HOUR)
    min_body_rate = Setting(SIZE, 500, "Bytes per second that a body brings on average; slower gets 408", 1, _GIB)
    queue_timeout = Setting(DURATION, 10.0, "For a request to wait for a thread; then 503", 0.01, _HOUR)
    request_timeout = Setting(
        DURATION,
        0.0,
        "For a thread to serve a request; then 504, or the connection is cut, and the stack logged; 0 is off",
        0.0,
        _DAY,
        basic=True,
    )
    write_timeout = Setting(
        DURATION, 30.0, "Without a byte of the response taken; then the connection is cut", 0.1, _HOUR
    )
    idle_timeout = Setting(DURATION, 75.0, "Between two requests; must be longer than the load balancer's", 1.0, _DAY)

    drain_delay = Setting(
        DURATION, 5.0, "After SIGTERM go on accepting, while load balancers notice; 0: none", 0.0, _HOUR, basic=True
    )
    drain_timeout = Setting(
        DURATION, 20.0, "Then for requests in flight to finish; 0 aborts them at once", 0.0, _HOUR, basic=True
    )
    grace_period = Setting(
        DURATION, 30.0, "From SIGTERM to the platform's SIGKILL; drain_delay + drain_timeout + 2s must fit", 2.0, _DAY
    )
    liveness_timeout = Setting(DURATION, 30.0, "Interpreter without a tick; then /healthz is 503", 1.0, _HOUR)
    stuck_timeout = Setting(
        DURATION, 0.0, "Every thread on its request for longer, none done; then /healthz is 503; 0 is off", 0.0, _DAY
    )

    liveness_path = Setting(
        PAGE,
        "/healthz",
        "Path of the liveness page, below which are its checks; another if the application has that one itself",
    )
    readiness_path = Setting(PAGE, "/readyz", "Path of the readiness page, likewise")

    log_level = Setting(
        choice("debug", "info", "warning", "error", "critical", warn="warning", fatal="critical"),
        "info",
        "Least severe records that are written",
        environment="LOG_LEVEL",
        basic=True,
    )
    log_format = Setting(
        choice("auto", "json", "text"),
        "auto",
        "One JSON object a line, or text; auto: text on a terminal, else JSON",
        environment="LOG_FORMAT",
    )
    access_log = Setting(BOOLEAN, True, "One record for each request; probes are never logged", basic=True)

    admin = Setting(
        ADDRESS,
        "127.0.0.1:9901",
        "Address of the admin listener, or off; other than loopback needs a token",
        basic=True,
    )
    admin_token = Setting(TOKEN, "", "Token that the admin listener asks for", secret=True)
    admin_token_file = Setting(PATH, "", "File with that token, read at start")

    __slots__ = ("_origins", "_shown", "_values", "warnings")

    warnings: tuple[str, ...]
    _values: dict[str, Any]
    _origins: dict[str, str]
    _shown: dict[str, str]

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"settings are frozen: {name}")

    def __repr__(self) -> str:
        changed = (f"{row.name}={row.value!r}" for row in self.describe() if row.origin != "default")
        return f"Settings({', '.join(changed)})"

    def __iter__(self) -> Iterator[str]:
        return (setting.name for setting in SETTINGS)

    def origin(self, name: str) -> str:
        """Where the value came from: default, environment, flag, file or implied."""
        return self._origins[name]

    def describe(self) -> tuple[Row, ...]:
        """One row for each setting, in order of declaration, secrets redacted."""
        return tuple(
            Row(
                setting.name,
                self._shown[setting.name],
                self._origins[setting.name],
                setting.show(setting.default),
                setting.environment,
                setting.flag,
            )
            for setting in SETTINGS
        )


SETTINGS: tuple[Setting[Any], ...] = tuple(value for value in vars(Settings).values() if isinstance(value, Setting))
# The headings of `--help-all` and of the README, each with the setting that it stands before.
HEADINGS = {
    "host": "Listening",
    "pool": "Database",
    "max_connections": "Limits",
    "header_timeout": "Timeouts",
    "drain_delay": "Shutdown and liveness",
    "log_level": "Logging",
    "admin": "Admin listener",
}
_BY_NAME = {setting.name: setting for setting in SETTINGS}


# --- loading -------------------------------------------------------------------------------------------------------


def _fault(source: str, setting: Setting[Any], text: str, reason: str) -> str:
    if setting.secret:
        return f"{source}: {reason}"
    # A URL can get where it does not belong; its password must not get further.
    text = re.sub(r"://.*@", f"://{HIDDEN}@", text, flags=re.DOTALL)
    shown = ascii(text if len(text) <= 200 else text[:197] + "...")
    return f"{source}: {shown} {reason}"


# What Kubernetes puts into every container of a namespace for a Service called pkg or pkg-something
# (kubernetes/kubernetes:pkg/kubelet/envvars/envvars.go): nobody meant a setting with these.
_SERVICE_LINK = re.compile(
    r"PKG_(\w+_)?(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT_[0-9]+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)", re.ASCII
)
_SERVICE_LINK_URL = re.compile(r"(tcp|udp|sctp)://")


def _unknown(environ: Mapping[str, str]) -> Iterator[str]:
    known = {setting.environment for setting in SETTINGS}
    for name in sorted(environ):
        if not name.startswith("PKG_") or name in known or _SERVICE_LINK.fullmatch(name):
            continue
        if name.endswith("PORT") and _SERVICE_LINK_URL.match(environ[name]):
            continue
        import difflib  # 7 ms, only for who mistyped

        # PKG_PORT means PORT: well-known names are found under either spelling.
        spellings = {f"PKG_{setting.name.upper()}": setting.environment for setting in SETTINGS}
        spellings |= {setting.environment: setting.environment for setting in SETTINGS}
        nearest = difflib.get_close_matches(name, spellings, n=1, cutoff=0.75)
        hint = f": did you mean {spellings[nearest[0]]}?" if nearest else ""
        yield f"{ascii(name)[1:-1]} is not a setting{hint}"


def _of_other_servers(environ: Mapping[str, str]) -> Iterator[str]:
    if any(name.startswith(("WEB_CONCURRENCY", "GUNICORN_", "UVICORN_", "FORWARDED_ALLOW_IPS")) for name in environ):
        from pkg._other_servers import warning

        line = warning(environ, {setting.flag: setting.environment for setting in SETTINGS})
        if line:
            yield line


def _across(settings: Settings) -> Iterator[tuple[str, str, tuple[str, ...]]]:
    """Faults that only several settings together show: the setting to name, what is wrong, the others that matter."""
    delay, timeout, grace = (DURATION.show(settings._values[name]) for name in _PLAN)
    if settings.drain_delay + settings.drain_timeout + 2 > settings.grace_period:
        yield "grace_period", f"{grace} is too short for drain_delay {delay} + drain_timeout {timeout} + 2s", _PLAN
    for small, large in _ORDERED:
        kind = _BY_NAME[small].kind
        if settings._values[small] > settings._values[large]:
            reason = f"{kind.show(settings._values[small])} is more than {large}, {kind.show(settings._values[large])}"
            yield small, reason, (large,)
    for name in ("request_timeout", "stuck_timeout"):
        if 0 < getattr(settings, name) < 1:
            yield name, f"{DURATION.show(getattr(settings, name))} is neither 0 (off) nor at least 1s", ()
    if settings.proxy_protocol and not settings.trusted_proxies:
        yield "proxy_protocol", "needs trusted_proxies, the networks it is believed from", ("trusted_proxies",)
    if settings.proxy_protocol_optional and not settings.proxy_protocol:
        yield "proxy_protocol_optional", "needs proxy_protocol, which it qualifies", ("proxy_protocol",)
    if settings.liveness_path == settings.readiness_path:
        yield "readiness_path", "is liveness_path as well", ("liveness_path",)
    address = parse_address(settings.admin)
    if address is not None:
        if not is_loopback(address[0]) and not settings.admin_token:
            reason = f"{settings.admin} is not a loopback address: it needs admin_token or admin_token_file"
            yield "admin", reason, ("admin_token", "admin_token_file")
        # The default is given up with a warning when its port is taken; an address that was asked for is not.
        if settings.origin("admin") != "default" and address[1] == settings.port != 0:
            yield "admin", f"{settings.admin} has the port of the service itself", ("port",)


_PLAN = ("drain_delay", "drain_timeout", "grace_period")
_ORDERED = (
    ("pool_min_size", "pool_max_size"),
    ("max_target_size", "max_header_size"),
    ("body_buffer_size", "buffer_size"),
    ("response_buffer_size", "buffer_size"),
)


def load(environ: Mapping[str, str], flags: Mapping[str, str] | None = None) -> Settings:
    """The settings from an environment and from flags (keys are the settings' names, values what was typed).

    Raises ConfigurationError with all faults.  What is odd but harmless is in `warnings`, for the log.
    """
    flags = flags or {}
    values: dict[str, Any] = {}
    origins: dict[str, str] = {}
    shown: dict[str, str] = {}
    faults: list[str] = []
    wrong: set[str] = set()

    def named(name: str) -> str:
        setting = _BY_NAME[name]
        return setting.flag if origins.get(name) == "flag" else setting.environment

    for name in flags.keys() - _BY_NAME.keys():
        faults.append(f"{name}: is not a setting")
    for setting in SETTINGS:
        name = setting.name
        values[name], origins[name] = setting.default, "default"
        if name in ("database_url", "database_url_file") and not values["pool"]:
            continue  # another library's, which may have a form of its own
        text = environ.get(setting.environment, "").strip()
        if name in flags:
            text, origins[name] = flags[name], "flag"
        elif text:
            origins[name] = "environment"
        else:
            continue
        try:
            values[name] = setting.parse(text)
        except ValueError as error:
            faults.append(_fault(named(name), setting, text, str(error)))
            wrong.add(name)

    url: str = values["database_url"]
    for name in ("database_url", "admin_token"):
        file = f"{name}_file"
        if file in wrong or not values[file]:
            continue
        if values[name] or name in wrong:
            faults.append(f"{named(name)} and {named(file)} are both set: which one is meant?")
            continue
        try:
            text = read_secret(values[file])
        except ValueError as error:
            faults.append(_fault(named(file), _BY_NAME[file], values[file], str(error)))
            wrong |= {name, file}
            continue
        try:
            content = _BY_NAME[name].parse(text)
        except ValueError as error:
            faults.append(_fault(named(file), _BY_NAME[file], values[file], f"holds a wrong value: {error}"))
            wrong.add(name)
            continue
        origins[name] = "file"
        if name == "database_url":
            # Not kept as a value: the file is read again for each connection, and an old copy would be the wrong one.
            url = content
            shown[name] = redact_url(content)
        else:
            values[name] = content

    if origins["database_role"] == "default" and url and "database_url" not in wrong and is_primary_wanted(url):
        values["database_role"], origins["database_role"] = "primary", "implied"

    for setting in SETTINGS:
        value = values[setting.name]
        shown.setdefault(setting.name, redact_url(value) if setting.name == "database_url" else setting.show(value))

    settings = Settings()
    for slot, content in (("_values", values), ("_origins", origins), ("_shown", shown)):
        object.__setattr__(settings, slot, content)
    object.__setattr__(settings, "warnings", (*_unknown(environ), *_of_other_servers(environ)))
    for name, reason, others in _across(settings):
        # What is wrong already would only be reported a second time, in a more confusing way.
        if not wrong.intersection((name, *others)):
            faults.append(f"{named(name)}: {reason}")
    if faults:
        raise ConfigurationError(faults)
    return settings


# --- the table of the README ---------------------------------------------------------------------------------------


def markdown() -> str:
    """The settings as a Markdown table, for the README; a test holds the README against it."""

    def escaped(text: str) -> str:
        return text.replace("|", "\\|")

    lines = ["| setting | environment | default | range | what it does |", "|---|---|---|---|---|"]
    for setting in SETTINGS:
        if setting.name in HEADINGS:
            lines.append(f"| **{HEADINGS[setting.name]}** | | | | |")
        default = setting.show(setting.default)
        lines.append(
            f"| `{setting.name}` | `{setting.environment}` | {f'`{default}`' if default else ''} | {setting.bounds()} "
            f"| {escaped(setting.help)} |"
        )
    return "\n".join(lines)
