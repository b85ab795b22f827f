"""Every setting of the service, declared once: name, converter, default, bounds, help, environment variable, flag.

It reads an injected mapping and never acts on the values: each part of the service is given its own values only.

The rules:
- A flag takes precedence over the environment, and the environment over the default.  An empty variable is not set.
- `load()` finds all faults before it raises, so that an operator can correct them all at once.
- "0" never silently means "without limit": where 0 is allowed, the help text says what it does.
- A secret is never printed: not by `describe()`, not by `repr()`, not in a fault.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from pkg.errors import ConfigurationError
from pkg.settings.database_url import is_primary_wanted
from pkg.settings.kinds import (
    ADDRESS,
    APP,
    BOOLEAN,
    DIRECTORY,
    DURATION,
    HEALTH,
    HOST,
    INTEGER,
    LISTEN,
    NETWORKS,
    PAGE,
    PATH,
    PATH_PREFIX,
    PORT,
    SIZE,
    TOKEN,
    URL,
    Implied,
    Named,
    SecretFile,
    Setting,
    choice,
    is_loopback,
    parse_address,
)
from pkg.settings.listen import Endpoint, parse_endpoint, parse_endpoints
from pkg.settings.secrets import HIDDEN, read_secret

__all__ = ["HEADINGS", "NAMED", "SETTINGS", "Row", "Settings", "known_variables", "load"]

_DAY = 86400.0
_HOUR = 3600.0
_KIB, _MIB, _GIB, _TIB = 1 << 10, 1 << 20, 1 << 30, 1 << 40


# --- the settings --------------------------------------------------------------------------------------------------


class Row(NamedTuple):
    """One line of `config`: text only, secrets redacted."""

    name: str
    value: str
    origin: str  # default, environment, flag, file or implied
    default: str
    environment: str
    flag: str


class Settings:
    """The settings of one process, as read-only attributes.  Only `load()` makes one."""

    host = Setting(HOST, "0.0.0.0", "Address to listen on.", environment="HOST", basic=True)
    port = Setting(
        PORT,
        8080,
        "TCP port to listen on. With 0 the kernel chooses a free port.",
        0,
        65535,
        environment="PORT",
        basic=True,
    )
    listen = Setting(
        LISTEN,
        "",
        "Addresses to listen on instead of host and port, separated by commas: 0.0.0.0:8080, [::]:8080 (IPv4 as well), "
        ":8080, unix:/run/app.sock or unix:/run/app.sock?mode=660, fd:3 (an inherited socket), systemd (all sockets "
        "that it passes). The flag may be repeated.",
        replaces=("host", "port"),
        repeats=True,
    )
    health = Setting(
        HEALTH,
        "",
        "Address of a further listener that answers the health pages only, as host:port, :port or unix:PATH; anything "
        "else gets 404 there.",
    )
    health_on_main = Setting(
        BOOLEAN,
        True,
        "Answer the health pages on the other listeners as well. With false, they belong to the application there, and "
        "health is required.",
    )
    app = Setting(
        APP,
        "",
        "Application to serve, as module:attribute (a WSGI or ASGI callable, or an http.server handler class), "
        "module:factory() or package.module (its application or app). Without it only the health pages are served.",
        flag="APP",
        basic=True,
    )
    interface = Setting(
        choice("auto", "wsgi", "asgi", "handler"),
        "auto",
        "Interface of the application. auto means asgi for a coroutine function and for what takes three arguments.",
    )
    lifespan = Setting(
        choice("auto", "on", "off"),
        "auto",
        "Whether an ASGI application is told of its start and end. auto serves one that does not want to be told; with "
        "on, the process exits with 3 instead.",
    )
    loop = Setting(
        choice("auto", "asyncio", "uvloop"),
        "auto",
        "Event loop of an ASGI application. auto means uvloop if it is installed, and asyncio otherwise.",
    )
    script_name = Setting(
        PATH_PREFIX,
        "",
        "URL path under which a proxy publishes the application, whether the proxy removes it or not. "
        "It is SCRIPT_NAME of WSGI and root_path of ASGI.",
        environment="SCRIPT_NAME",
    )
    reload = Setting(
        BOOLEAN,
        False,
        "For development: restart when a Python file below the current directory changes.",
        basic=True,
    )
    threads = Setting(
        INTEGER,
        8,
        "Number of worker threads. At most this many requests run at once; the rest queue. "
        "For an ASGI application it is the number of threads of run_in_executor and of anyio, which have limits of "
        "their own unless it is set.",
        1,
        1024,
        basic=True,
    )
    workers = Setting(
        INTEGER,
        0,
        "Number of worker processes. With 0 one process does everything.",
        0,
        256,
        environment="WEB_CONCURRENCY",
        basic=True,
    )
    preload = Setting(
        BOOLEAN,
        False,
        "Import the application once, before the workers are forked, so that they share its memory. It must not open "
        "connections or start threads while it is imported, but in functions of pkg.on_start.",
    )
    min_ready_workers = Setting(
        INTEGER,
        0,
        "Minimum number of workers that must be ready; with fewer, /readyz returns 503. 0 means half of them, rounded "
        "up.",
        0,
        256,
    )
    retry_idempotent = Setting(
        BOOLEAN,
        True,
        "Give a GET or HEAD request whose worker dies before it has responded to another worker, once.",
    )
    max_requests = Setting(
        INTEGER,
        0,
        "Number of requests, up to a tenth more, after which a worker is replaced. 0 turns it off.",
        0,
        1_000_000_000,
    )
    max_worker_memory = Setting(
        SIZE,
        0,
        "Maximum memory of a worker, without what it shares with others; then it is replaced. 0 turns it off.",
        0,
        _TIB,
        least_if_on=16 * _MIB,
    )
    trusted_proxies = Setting(
        NETWORKS,
        "",
        "Networks of proxies, separated by commas, whose X-Forwarded headers and PROXY protocol are trusted; unix "
        "stands for everybody at a Unix socket.",
        basic=True,
    )
    proxy_protocol = Setting(
        BOOLEAN,
        False,
        "Require the PROXY protocol on connections from trusted_proxies; such a connection without it gets 400.",
    )
    proxy_protocol_optional = Setting(
        BOOLEAN,
        False,
        "Also accept connections from trusted_proxies without the PROXY "
        "protocol, for proxies whose health checks do not send it.",
    )

    pool = Setting(
        BOOLEAN,
        True,
        "Open a connection pool if a database URL is set. With false, DATABASE_URL belongs to the "
        "application, whatever it contains, and there is no pool and no database check.",
        named=Named("PKG_POOL_{}", needs="pool"),
    )
    database_url = Setting(
        URL,
        "",
        "PostgreSQL URL (postgresql://...). Without it there is no connection pool and no database check.",
        environment="DATABASE_URL",
        secret=True,
        basic=True,
        file=SecretFile("database_url_file", is_reread=True),
        needs="pool",  # otherwise the URL is for another library and may have any form
        named=Named("DATABASE_URL_{}", inherits=False),
    )
    database_url_file = Setting(
        PATH,
        "",
        "File that contains the database URL. It is read again for each new "
        "connection, so that a changed password needs no restart.",
        environment="DATABASE_URL_FILE",
        needs="pool",
        named=Named("DATABASE_URL_{}_FILE", inherits=False),
    )
    database_role = Setting(
        choice("any", "primary"),
        "any",
        "With primary, the database check fails if the server is read-only. "
        "target_session_attrs=read-write in the URL implies primary.",
        implied=Implied("primary", "database_url", is_primary_wanted),
        named=Named("PKG_DATABASE_ROLE_{}", inherits=False),
    )
    database_required = Setting(
        BOOLEAN,
        True,
        "Whether a database check that fails makes the service unready. With false, it is only degraded.",
        named=Named("PKG_DATABASE_REQUIRED_{}", inherits=False),
    )
    pool_min_size = Setting(
        INTEGER,
        2,
        "Minimum pool size; this many connections are kept open.",
        1,
        1000,
        named=Named("PKG_POOL_MIN_SIZE_{}"),
    )
    pool_max_size = Setting(
        INTEGER,
        10,
        "Maximum pool size; further callers wait for a free connection.",
        1,
        1000,
        basic=True,
        named=Named("PKG_POOL_MAX_SIZE_{}"),
    )
    pool_timeout = Setting(
        DURATION,
        5.0,
        "Maximum time to wait for a free connection; then DatabaseUnavailable is raised.",
        0.01,
        600.0,
        named=Named("PKG_POOL_TIMEOUT_{}"),
    )
    connect_timeout = Setting(
        DURATION,
        3.0,
        "Maximum time to establish a database connection; then the attempt fails.",
        1.0,
        60.0,
        named=Named("PKG_CONNECT_TIMEOUT_{}"),
    )
    prepare_statements = Setting(
        BOOLEAN,
        True,
        "Let psycopg prepare statements that are executed repeatedly. Set it to false "
        "behind PgBouncer before 1.24 with pool_mode=transaction.",
        named=Named("PKG_PREPARE_STATEMENTS_{}"),
    )
    database_check_interval = Setting(
        DURATION,
        2.0,
        "Time between two database checks. Its former name, check_interval, is accepted.",
        0.1,
        60.0,
        former="check_interval",
        named=Named("PKG_DATABASE_CHECK_INTERVAL_{}"),
    )

    max_connections = Setting(
        INTEGER,
        10000,
        "Maximum number of client connections. Beyond it, a request on a new connection "
        "displaces one that is idle or slow; if there is none, only probes are served.",
        1,
        1_000_000,
    )
    max_queue = Setting(
        INTEGER,
        1024,
        "Maximum number of requests that wait for a worker thread, or for the event loop; further requests get 503.",
        1,
        1_000_000,
    )
    max_header_size = Setting(
        SIZE,
        32 * _KIB,
        "Maximum size of a request's head, which is its request line and header fields; a larger one gets 431.",
        _KIB,
        65535,
    )
    max_headers = Setting(
        INTEGER, 100, "Maximum number of header fields in a request; a request with more gets 431.", 8, 128
    )
    max_target_size = Setting(
        SIZE,
        8 * _KIB,
        "Maximum size of a request's target, which is its path and query; a longer one gets 414.",
        64,
        65535,
    )
    max_body_size = Setting(
        SIZE, 100 * _MIB, "Maximum size of a request body; a larger one gets 413.", 1, _TIB, basic=True
    )
    body_buffer_size = Setting(
        SIZE,
        64 * _KIB,
        "Maximum size of a request body that is collected in memory; a longer one waits in its socket or is spooled.",
        _KIB,
        _GIB,
    )
    body_spool = Setting(
        DIRECTORY,
        "",
        "Directory for the temporary files of spooled request bodies. "
        "The default is TMPDIR or /tmp, or memory if that is not writable.",
    )
    body_spool_size = Setting(
        SIZE,
        32 * _MIB,
        "Maximum size of all spooled request bodies together; "
        "beyond it a worker thread reads the body as it arrives, and a chunked body gets 503.",
        0,
        _TIB,
    )
    stream_bodies = Setting(
        BOOLEAN,
        False,
        "Pass a long request body to the application as it arrives; its worker thread waits for the client meanwhile. "
        "ASGI applications get all bodies in this way.",
    )
    response_buffer_size = Setting(
        SIZE,
        _MIB,
        "Maximum amount of a response that is buffered for a slow client; "
        "beyond it the application waits for the client.",
        _KIB,
        _GIB,
    )
    buffer_size = Setting(
        SIZE,
        32 * _MIB,
        "Maximum memory for all of these buffers, and messages of WebSockets, together. Beyond it, requests "
        "with a long head get 503, bodies are spooled, and WebSockets are closed with 1013.",
        _MIB,
        _TIB,
    )

    header_timeout = Setting(
        DURATION, 10.0, "Maximum time for a request's head to arrive; then the client gets 408.", 0.1, _HOUR
    )
    body_timeout = Setting(
        DURATION,
        30.0,
        "Maximum time without progress while a request body arrives; then the client gets 408.",
        0.1,
        _HOUR,
    )
    min_body_rate = Setting(
        SIZE,
        500,
        "Minimum average rate in bytes per second at which a request body must arrive; a slower client gets 408.",
        1,
        _GIB,
    )
    queue_timeout = Setting(
        DURATION,
        10.0,
        "Maximum time that a request waits for a worker thread, or for the event loop; then the client gets 503.",
        0.01,
        _HOUR,
    )
    request_timeout = Setting(
        DURATION,
        0.0,
        "Maximum time to serve a request. Then the client gets 504, or the connection is closed if "
        "the response has begun, and the stack is logged. An ASGI task is cancelled. 0 turns it off.",
        0.0,
        _DAY,
        least_if_on=1.0,
        basic=True,
    )
    write_timeout = Setting(
        DURATION,
        30.0,
        "Maximum time without progress while a response is sent; then the connection is closed.",
        0.1,
        _HOUR,
    )
    idle_timeout = Setting(
        DURATION,
        75.0,
        "Maximum time between two requests on a connection; then it is closed. It "
        "must be longer than the load balancer's idle timeout.",
        1.0,
        _DAY,
    )

    max_message_size = Setting(
        SIZE,
        16 * _MIB,
        "Maximum size of a WebSocket message from a client, also when it is unpacked; "
        "a larger one closes the WebSocket with 1009.",
        _KIB,
        _GIB,
    )
    websocket_compression = Setting(
        BOOLEAN,
        True,
        "Compress long messages of WebSockets whose clients offer it (permessage-deflate).",
    )
    websocket_ping_interval = Setting(
        DURATION,
        20.0,
        "Time between two pings of a WebSocket. 0 turns them off.",
        0.0,
        _DAY,
        least_if_on=1.0,
    )
    websocket_ping_timeout = Setting(
        DURATION,
        20.0,
        "Maximum time after a ping in which nothing comes from the client; then the WebSocket is closed. "
        "0 turns it off.",
        0.0,
        _DAY,
        least_if_on=1.0,
    )

    drain_delay = Setting(
        DURATION,
        5.0,
        "Time after SIGTERM in which new connections are still accepted, until load "
        "balancers have noticed. With 0 the listener closes at once.",
        0.0,
        _HOUR,
        basic=True,
    )
    drain_timeout = Setting(
        DURATION,
        20.0,
        "Maximum time after drain_delay for requests in flight to finish; then they are aborted, with 0 at once.",
        0.0,
        _HOUR,
        basic=True,
    )
    grace_period = Setting(
        DURATION,
        30.0,
        "Time between the platform's SIGTERM and its SIGKILL. drain_delay + drain_timeout + 2s must fit into it.",
        2.0,
        _DAY,
    )
    liveness_timeout = Setting(
        DURATION,
        30.0,
        "Maximum time without a sign of life from the Python interpreter; then /healthz returns 503.",
        1.0,
        _HOUR,
    )
    stuck_timeout = Setting(
        DURATION,
        0.0,
        "Maximum time that every worker thread may spend on its request without one of them finishing, or an ASGI "
        "application's event loop on one turn; then /healthz returns 503. 0 turns it off.",
        0.0,
        _DAY,
        least_if_on=1.0,
    )

    slow_callback_duration = Setting(
        DURATION,
        0.1,
        "Maximum time that one turn of an ASGI application's event loop takes; beyond it, a warning names the line "
        "that blocks it. 0 turns it off.",
        0.0,
        _HOUR,
        least_if_on=0.005,
    )

    liveness_path = Setting(
        PAGE,
        "/healthz",
        "Path of the liveness page; the pages of its checks are below it. "
        "Change it if the application has a route of that path.",
    )
    readiness_path = Setting(
        PAGE,
        "/readyz",
        "Path of the readiness page; the pages of its checks are below it. "
        "Change it if the application has a route of that path.",
    )

    log_level = Setting(
        choice("debug", "info", "warning", "error", "critical", warn="warning", fatal="critical"),
        "info",
        "Lowest severity of the log records that are written.",
        environment="LOG_LEVEL",
        basic=True,
    )
    log_format = Setting(
        choice("auto", "json", "text"),
        "auto",
        "Format of the log: json writes one JSON object per line, text is easier to "
        "read. auto means text on a terminal and json otherwise.",
        environment="LOG_FORMAT",
    )
    log_schema = Setting(
        choice("otel", "gcp", "ecs"),
        "otel",
        "Names of the fields of JSON lines: OpenTelemetry's, those of Google Cloud's structured logging, or the "
        "Elastic Common Schema.",
    )
    access_log = Setting(BOOLEAN, True, "Log one record for each request. Probes are never logged.", basic=True)

    admin = Setting(
        ADDRESS,
        "127.0.0.1:9901",
        "Address of the admin listener, or off. An address other than loopback requires a token.",
        basic=True,
    )
    admin_token = Setting(
        TOKEN,
        "",
        "Token that requests to the admin listener must carry.",
        secret=True,
        file=SecretFile("admin_token_file"),
    )
    admin_token_file = Setting(PATH, "", "File that contains this token. It is read once, at start.")

    __slots__ = ("_declared", "_names", "_origins", "_shown", "_values", "notes", "warnings")

    notes: tuple[str, ...]  # what an operator may want to know, one line each
    warnings: tuple[str, ...]
    _declared: tuple[Setting[Any], ...]  # all, and those of the databases with a name
    _names: tuple[str, ...]  # of databases
    _values: dict[str, Any]
    _origins: dict[str, str]
    _shown: dict[str, str]

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"settings are read-only: {name}")

    def __repr__(self) -> str:
        changed = (f"{row.name}={row.value!r}" for row in self.describe() if row.origin != "default")
        return f"Settings({', '.join(changed)})"

    @property
    def endpoints(self) -> tuple[Endpoint, ...]:
        """Where to listen, without `health_endpoint`: at least one."""
        return parse_endpoints(self.listen) or (Endpoint("tcp", host=self.host, port=self.port),)

    @property
    def health_endpoint(self) -> Endpoint | None:
        """The listener for the health pages only."""
        return parse_endpoint(self.health) if self.health else None

    @property
    def databases(self) -> dict[str, Settings]:
        """The settings as they are for each database that has a pool, by name; "" is the one of DATABASE_URL."""
        every = {name: self._for_name(name) for name in ("", *self._names)}
        return {name: one for name, one in every.items() if one.pool and (one.database_url or one.database_url_file)}

    def _for_name(self, name: str) -> Settings:
        """These settings with the values for a name under the names of the settings for all."""
        if not name:
            return self
        settings = Settings()
        for slot in Settings.__slots__:
            object.__setattr__(settings, slot, getattr(self, slot))
        own = {setting.name: self._values[setting.called(name)] for setting in NAMED}
        object.__setattr__(settings, "_values", self._values | own)
        return settings

    def value(self, name: str) -> Any:
        """The value of the setting of this name, which its descriptor reads."""
        return self._values[name]

    def origin(self, name: str) -> str:
        """Where the value came from: default, environment, flag, file or implied."""
        return self._origins[name]

    def describe(self) -> tuple[Row, ...]:
        """One row for each setting, in order of declaration, then those of each database with a name; secrets
        redacted."""
        return tuple(
            Row(
                setting.name,
                self._shown[setting.name],
                self._origins[setting.name],
                setting.show(setting.default),
                setting.environment,
                setting.flag,
            )
            for setting in self._declared
        )


SETTINGS: tuple[Setting[Any], ...] = tuple(value for value in vars(Settings).values() if isinstance(value, Setting))
# The headings of `--help-all` and of docs/settings.md, each with the setting before which it stands.
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
# Those which each database with a name has.
NAMED = tuple(setting for setting in SETTINGS if setting.named is not None)


# --- loading -------------------------------------------------------------------------------------------------------


def _fault(source: str, setting: Setting[Any], text: str, reason: str) -> str:
    if setting.secret:
        return f"{source}: {reason}"
    # Any setting can hold a URL by mistake; its password must not be shown.
    text = re.sub(r"://.*@", f"://{HIDDEN}@", text, flags=re.DOTALL)
    shown = ascii(text if len(text) <= 200 else text[:197] + "...")
    return f"{source}: {shown} {reason}"


def _names(environ: Mapping[str, str]) -> tuple[tuple[str, ...], list[str]]:
    """The names of databases that an environment declares, in lower case, and variables that only look like that."""
    found = [name for name in environ if name.startswith("DATABASE_URL_") and name != "DATABASE_URL_FILE"]
    if not found:
        return (), []
    from pkg.settings.variables import names_of

    return names_of({name: environ[name] for name in found})


def known_variables(environ: Mapping[str, str]) -> set[str]:
    """The environment variables of all settings, including those for the names of databases that an environment has."""
    names, _ = _names(environ)
    return {setting.environment for setting in SETTINGS} | {s.variable(name) for name in names for s in NAMED}


_FORMER = {setting.former: setting for setting in SETTINGS if setting.former}


def _renamed(
    environ: Mapping[str, str], flags: Mapping[str, str]
) -> tuple[Mapping[str, str], Mapping[str, str], dict[str, str]]:
    """Environment and flags with the present names of settings, and the former variable or flag of those that had one.

    The present name wins, and a flag wins over a variable, as always.
    """
    formers: dict[str, str] = {}
    for former, setting in _FORMER.items():
        if not environ.get(setting.environment, "").strip() and environ.get(setting.former_environment, "").strip():
            environ = {**environ, setting.environment: environ[setting.former_environment]}
            formers[setting.name] = setting.former_environment
        if setting.name in flags:
            formers.pop(setting.name, None)
        elif former in flags:
            formers[setting.name] = setting.former_flag
        if former in flags:
            flags = {setting.name: flags[former], **{name: text for name, text in flags.items() if name != former}}
    return environ, flags, formers


def _replaced(environ: Mapping[str, str], flags: Mapping[str, str]) -> tuple[Mapping[str, str], list[str], list[str]]:
    """The environment without the variables in whose place another setting is used, and notes and faults about that.

    A setting wins over those that it replaces, except that their flags win over its variable: platforms set PORT in
    any case, and a flag is typed for this one start.
    """
    notes: list[str] = []
    faults: list[str] = []
    for setting in SETTINGS:
        is_flag = setting.name in flags
        if not (flags[setting.name] if is_flag else environ.get(setting.environment, "")).strip():
            continue
        replaced = [_BY_NAME[name] for name in setting.replaces]
        typed = [other.flag for other in replaced if other.name in flags]
        if is_flag and typed:
            faults.append(f"{setting.flag}: cannot be combined with {' or '.join(typed)}, which it replaces")
            continue
        unused = [setting] if typed else [other for other in replaced if environ.get(other.environment, "").strip()]
        if unused:
            names = " and ".join(other.environment for other in unused)
            used = " and ".join(typed) or (setting.flag if is_flag else setting.environment)
            notes.append(f"ignoring {names} in favor of {used}")
            variables = {other.environment for other in unused}
            environ = {name: text for name, text in environ.items() if name not in variables}
    return environ, notes, faults


def _reason(error: ValueError, needed: Setting[Any] | None) -> str:
    """The text of an error; if it advises to turn off what the setting needs, this is what it needs for its name."""
    if needed is None or not needed.general:
        return str(error)
    return str(error).replace(f"{_BY_NAME[needed.general].environment}=", f"{needed.environment}=")


def _outdated(formers: Mapping[str, str]) -> Iterator[str]:
    for name, former in formers.items():
        setting = _BY_NAME[name]
        yield f"{former} is now called {setting.flag if former == setting.former_flag else setting.environment}"


def _not_understood(
    environ: Mapping[str, str], declared: Iterable[Setting[Any]], names: Sequence[str], not_names: Iterable[str]
) -> Iterator[str]:
    """About variables that look like those of settings.  `declared`: all settings, with those for `names`."""
    known = {variable for setting in declared for variable in (setting.environment, setting.former_environment)}
    strange = {name: environ[name] for name in sorted(environ) if name.startswith("PKG_") and name not in known}
    if strange or not_names:
        from pkg.settings import variables

        yield from variables.unknown(strange, declared, names, NAMED)
        yield from variables.not_names(not_names)


def _of_other_servers(environ: Mapping[str, str]) -> Iterator[str]:
    if any(name.startswith(("GUNICORN_", "UVICORN_", "FORWARDED_ALLOW_IPS")) for name in environ):
        from pkg.settings.other_servers import warning

        line = warning(environ, {setting.flag: setting.environment for setting in SETTINGS})
        if line:
            yield line


def _across(settings: Settings) -> Iterator[tuple[str, str, tuple[str, ...]]]:
    """Faults in the combination of settings: the setting to name, what is wrong, and the other settings involved."""
    delay, timeout, grace = (DURATION.show(settings._values[name]) for name in _PLAN)
    if settings.drain_delay + settings.drain_timeout + 2 > settings.grace_period:
        yield "grace_period", f"{grace} is too short for drain_delay {delay} + drain_timeout {timeout} + 2s", _PLAN
    for small, large in _ordered(settings):
        kind = small.kind
        less, more = settings._values[small.name], settings._values[large.name]
        if less > more:
            yield small.name, f"{kind.show(less)} is more than {large.name} ({kind.show(more)})", (large.name,)
    for setting in settings._declared:
        least, value = setting.least_if_on, settings._values[setting.name]
        if least is not None and 0 < value < least:
            yield setting.name, f"{setting.show(value)} is neither 0 (off) nor at least {setting.show(least)}", ()
    if settings.proxy_protocol and not settings.trusted_proxies:
        yield "proxy_protocol", "requires trusted_proxies, the networks from which it is accepted", ("trusted_proxies",)
    if settings.proxy_protocol_optional and not settings.proxy_protocol:
        yield "proxy_protocol_optional", "requires proxy_protocol, which it relaxes", ("proxy_protocol",)
    if settings.workers and settings.reload:
        reason = "cannot be combined with reload, which is for development; SIGHUP replaces workers"
        yield "workers", reason, ("reload",)
    if settings.preload and not settings.workers:
        yield "preload", "requires workers, which are forked after it", ("workers",)
    if settings.min_ready_workers > settings.workers > 0:
        reason = f"{settings.min_ready_workers} is more than workers ({settings.workers})"
        yield "min_ready_workers", reason, ("workers",)
    if settings.liveness_path == settings.readiness_path:
        yield "readiness_path", "is the same path as liveness_path", ("liveness_path",)
    if not settings.health_on_main and not settings.health:
        yield "health_on_main", "false requires health, the listener for the health pages", ("health",)
    health = settings.health_endpoint
    if health is not None and any(health.overlaps(endpoint) for endpoint in settings.endpoints):
        yield "health", f"{health} is an address of the service itself", ("host", "port", "listen")
    address = parse_address(settings.admin)
    if address is not None:
        if not is_loopback(address[0]) and not settings.admin_token:
            reason = f"{settings.admin} is not a loopback address: set admin_token or admin_token_file"
            yield "admin", reason, ("admin_token", "admin_token_file")
        # If the port is taken, the default address is given up with a warning, but an address that was set is a fault.
        if settings.origin("admin") != "default" and address[1] != 0:
            if address[1] in [endpoint.port for endpoint in settings.endpoints]:
                yield "admin", f"{settings.admin} uses the port of the service itself", ("port", "listen")
            elif health is not None and address[1] == health.port:
                yield "admin", f"{settings.admin} uses the port of the health listener", ("health",)


_PLAN = ("drain_delay", "drain_timeout", "grace_period")
_ORDERED = (
    ("pool_min_size", "pool_max_size"),
    ("max_target_size", "max_header_size"),
    ("body_buffer_size", "buffer_size"),
    ("response_buffer_size", "buffer_size"),
)


def _ordered(settings: Settings) -> Iterator[tuple[Setting[Any], Setting[Any]]]:
    """Pairs of which the first must not be more than the second, for each name too, unless it has inherited both."""
    declared = {setting.name: setting for setting in settings._declared}
    for small, large in _ORDERED:
        yield declared[small], declared[large]
        for name in settings._names if _BY_NAME[small].named is not None else ():
            pair = _BY_NAME[small].called(name), _BY_NAME[large].called(name)
            if any(settings.origin(each) != "default" for each in pair):
                yield declared[pair[0]], declared[pair[1]]


def load(environ: Mapping[str, str], flags: Mapping[str, str] | None = None) -> Settings:
    """The settings from an environment and from flags (the keys are the settings' names, the values what was typed).

    Raises ConfigurationError with all faults.  `warnings` and `notes` of the result are for the log: harmless oddities,
    and what an operator may want to know.
    """
    environ, flags, formers = _renamed(environ, flags or {})
    present, notes, faults = _replaced(environ, flags)
    names, not_names = _names(environ)
    values: dict[str, Any] = {}
    origins: dict[str, str] = {}
    shown: dict[str, str] = {}
    wrong: set[str] = set()
    by_name = _BY_NAME
    declared = SETTINGS

    def named(name: str) -> str:
        setting = by_name[name]
        return formers.get(name) or (setting.flag if origins.get(name) == "flag" else setting.environment)

    def read(setting: Setting[Any]) -> None:
        name = setting.name
        values[name], origins[name] = setting.default, "default"
        if setting.needs and not values[setting.needs]:
            return
        text = present.get(setting.environment, "").strip()
        if name in flags:
            text, origins[name] = flags[name], "flag"
        elif text:
            origins[name] = "environment"
        else:
            return
        try:
            values[name] = setting.parse(text)
        except ValueError as error:
            faults.append(_fault(named(name), setting, text, _reason(error, by_name.get(setting.needs))))
            wrong.add(name)

    for name in flags.keys() - _BY_NAME.keys():
        faults.append(f"{name} is not a setting")
    for setting in SETTINGS:
        read(setting)
    for name in names:
        own = [setting.for_name(name, values[setting.name], _BY_NAME) for setting in NAMED]
        declared = (*declared, *own)
        by_name = by_name | {setting.name: setting for setting in own}
        for setting, general in zip(own, NAMED, strict=True):
            read(setting)
            if origins[setting.name] == "default" and general.name in wrong:
                wrong.add(setting.name)

    reread: dict[str, Any] = {}  # what was in the files that are read again, and so is not kept as a value
    for setting in declared:
        if setting.file is None:
            continue
        name, file = setting.name, setting.file.setting
        if file in wrong or not values[file]:
            continue
        if values[name] or name in wrong:
            faults.append(f"{named(name)} and {named(file)} are both set; set only one of them")
            continue
        try:
            text = read_secret(values[file])
        except ValueError as error:
            faults.append(_fault(named(file), by_name[file], values[file], str(error)))
            wrong |= {name, file}
            continue
        try:
            content = setting.parse(text)
        except ValueError as error:
            reason = _reason(error, by_name.get(setting.needs))
            faults.append(_fault(named(file), by_name[file], values[file], f"contains an invalid value: {reason}"))
            wrong.add(name)
            continue
        origins[name] = "file"
        (reread if setting.file.is_reread else values)[name] = content

    known = {**values, **reread}
    for setting in declared:
        implied = setting.implied
        if implied is None or origins[setting.name] != "default" or implied.setting in wrong:
            continue
        if known[implied.setting] and implied.test(known[implied.setting]):
            values[setting.name], origins[setting.name] = implied.value, "implied"

    for setting in declared:
        shown[setting.name] = setting.show(reread.get(setting.name, values[setting.name]))

    settings = Settings()
    for slot, content in (("_values", values), ("_origins", origins), ("_shown", shown)):
        object.__setattr__(settings, slot, content)
    object.__setattr__(settings, "_declared", declared)
    object.__setattr__(settings, "_names", names)
    object.__setattr__(settings, "notes", tuple(notes))
    warnings = _outdated(formers), _not_understood(environ, declared, names, not_names), _of_other_servers(environ)
    object.__setattr__(settings, "warnings", tuple(itertools.chain(*warnings)))
    for name, reason, others in _across(settings):
        # A setting that is already reported would only be reported a second time, in a more confusing way.
        if not wrong.intersection((name, *others)):
            faults.append(f"{named(name)}: {reason}")
    if faults:
        raise ConfigurationError(faults)
    return settings
