"""Flags and variables of gunicorn and uvicorn, and what replaces each of them here.

It only produces messages: a flag that means the same here has the same name (`HOST`, `PORT`, `--reload`, ...), and the
others have no effect.  One table serves both, so that a new setting is named in one place.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping

__all__ = ["advice", "warning"]

_TLS = "no counterpart: let a proxy in front terminate TLS"
_ADDRESS = "HOST and PORT, or PKG_LISTEN for several addresses, unix:PATH and fd:N"
_PROXIES = "PKG_TRUSTED_PROXIES"
_ASGI = "no counterpart: HTTP is the server's own, and WebSockets need the extra `websockets`"
_FORM = "APP is module:attribute, or module:factory() for a factory"
_FOLDER = "modules are imported from the current directory and PYTHONPATH"
_PLATFORM = "no counterpart: the platform that starts the process (a container, systemd) decides this"
_LOGS = "LOG_FORMAT; the log goes to stdout"
_RECYCLE = "PKG_MAX_REQUESTS, with PKG_MAX_WORKER_MEMORY beside it, for workers (WEB_CONCURRENCY)"
_HEADERS = "PKG_MAX_HEADER_SIZE, PKG_MAX_HEADERS and PKG_MAX_TARGET_SIZE"
_CONCURRENCY = (
    "PKG_MAX_CONNECTIONS, as a connection has one request at a time; "
    "WSGI applications run PKG_THREADS requests, PKG_MAX_QUEUE wait, further ones get 503"
)
_FILES = "PKG_RELOAD watches the Python files below the current directory"
_FIELDS = "no counterpart: Date is sent and Server is not; the application sets all other fields"
_BACKLOG = (
    "no counterpart: the backlog is 4096, or as long as the kernel allows (net.core.somaxconn); "
    "PKG_MAX_QUEUE limits how many requests wait for a thread"
)
_TIMEOUT = "PKG_REQUEST_TIMEOUT limits one request (504); PKG_STUCK_TIMEOUT detects workers that never finish"

# Flags of gunicorn and uvicorn that do not exist here under the same name.
_INSTEAD: dict[str, str] = {
    # gunicorn
    "-w": "--workers",
    **dict.fromkeys(
        ("-k", "--worker-class"),
        "not needed: WSGI applications run in PKG_THREADS threads, ASGI applications in an event loop",
    ),
    **dict.fromkeys(("-b", "--bind"), _ADDRESS),
    **dict.fromkeys(("-t", "--timeout"), _TIMEOUT),
    "--graceful-timeout": "PKG_DRAIN_TIMEOUT",
    "--keep-alive": "PKG_IDLE_TIMEOUT",
    "--worker-connections": "PKG_MAX_CONNECTIONS",
    "--max-requests-jitter": "not needed: a worker serves up to a tenth more than PKG_MAX_REQUESTS",
    "--worker-tmp-dir": "not needed: workers show their state in shared memory",
    **dict.fromkeys(("-c", "--config"), "variables and flags; python -m pkg config lists them"),
    **dict.fromkeys(("--certfile", "--keyfile", "--ca-certs", "--cert-reqs", "--ciphers"), _TLS),
    **dict.fromkeys(("--access-logfile", "--access-logformat"), "PKG_ACCESS_LOG; the log goes to stdout"),
    **dict.fromkeys(("--error-logfile", "--log-file", "--capture-output", "--use-colors"), _LOGS),
    "--logger-class": "no counterpart: LOG_FORMAT and PKG_LOG_SCHEMA; the application may configure its own loggers",
    "--paste": _FORM,
    "--log-config": "LOG_LEVEL and LOG_FORMAT; the application may configure its own loggers",
    **dict.fromkeys(("-D", "--daemon", "-p", "--pid", "-u", "--user", "-g", "--group", "-m", "--umask"), _PLATFORM),
    **dict.fromkeys(("-n", "--name", "-e", "--env", "--env-file"), _PLATFORM),
    **dict.fromkeys(("--chdir", "--pythonpath", "--app-dir", "--reload-dir", "--reload-extra-file"), _FOLDER),
    "--forwarded-allow-ips": _PROXIES,
    "--proxy-allow-from": _PROXIES + " and PKG_PROXY_PROTOCOL",
    **dict.fromkeys(("--limit-request-line", "--limit-request-fields", "--limit-request-field_size"), _HEADERS),
    "--backlog": _BACKLOG,
    "--check-config": "python -m pkg config",
    "--statsd-host": "/metrics of the admin listener (PKG_ADMIN)",
    # uvicorn
    "--uds": "PKG_LISTEN, as unix:PATH",
    "--fd": "PKG_LISTEN, as fd:N",
    **dict.fromkeys(("--http", "--ws"), _ASGI),
    "--ws-max-size": "PKG_MAX_MESSAGE_SIZE",
    "--ws-max-queue": "no counterpart: what waits for the application is bounded",
    "--ws-ping-interval": "PKG_WEBSOCKET_PING_INTERVAL",
    "--ws-ping-timeout": "PKG_WEBSOCKET_PING_TIMEOUT",
    "--ws-per-message-deflate": "PKG_WEBSOCKET_COMPRESSION",
    "--root-path": "SCRIPT_NAME",
    "--proxy-headers": _PROXIES,
    "--factory": _FORM,
    "--limit-concurrency": _CONCURRENCY,
    **dict.fromkeys(("--limit-max-requests", "--limit-max-requests-jitter"), _RECYCLE),
    **dict.fromkeys(("--reload-include", "--reload-exclude", "--reload-delay"), _FILES),
    **dict.fromkeys(("--header", "--server-header", "--date-header"), _FIELDS),
    **dict.fromkeys(("--no-server-header", "--no-date-header"), _FIELDS),
    "--no-proxy-headers": _PROXIES,
    "--timeout-worker-healthcheck": _TIMEOUT,
    "--timeout-keep-alive": "PKG_IDLE_TIMEOUT",
    "--timeout-graceful-shutdown": "PKG_DRAIN_TIMEOUT",
    "--h11-max-incomplete-event-size": _HEADERS,
    "--ssl-": _TLS,  # stands for every flag with this prefix
    "--app": "PKG_APP",
}
# Variables that belong to no flag.
_VARIABLES = {
    "FORWARDED_ALLOW_IPS": _PROXIES,
    "GUNICORN_CMD_ARGS": "flags of python -m pkg, or its variables",
}


def advice(argument: str) -> str:
    """What replaces a flag, given as it was typed (`-w4`, `--bind=:80`, `--ssl-keyfile`); "" for an unknown flag."""
    flag = argument.partition("=")[0] if argument.startswith("--") else argument[:2]
    return _INSTEAD.get("--ssl-" if flag.startswith("--ssl-") else flag, "")


def _of_variable(name: str, value: str, own: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Pairs of a name and its replacement.  `own` maps our flags to their variables."""
    if name.startswith("UVICORN_"):
        flag = "--" + name.removeprefix("UVICORN_").lower().replace("_", "-")
        yield name, own.get(flag) or advice(flag) or "no counterpart"
        return
    yield name, _VARIABLES[name]
    if name == "GUNICORN_CMD_ARGS":
        try:
            words = shlex.split(value)
        except ValueError:
            return
        for word in words:
            match = re.match(r"--[\w-]+|-\w", word)
            text = match and (own.get(match[0]) or advice(match[0]))
            if match and text:
                yield match[0], text  # not the value of the flag, which may be a secret


def warning(environ: Mapping[str, str], own: Mapping[str, str]) -> str:
    """One line about variables of other servers; "" if none is set.  `own` maps our flags to their variables."""
    found: dict[str, str] = {}
    for name in sorted(environ):
        if environ[name].strip() and (name in _VARIABLES or name.startswith("UVICORN_")):
            found.update(_of_variable(ascii(name)[1:-1], environ[name], own))
    if not found:
        return ""
    listed = "; ".join(f"{name}: {text}" for name, text in found.items())
    return f"ignoring variables of gunicorn and uvicorn; what to use instead: {listed}"
