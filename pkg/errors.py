"""The exceptions of the package; each says whose fault it is and what follows from it.

The parse errors of the C core are not among them: they become status codes and never leave the core.
"""

from __future__ import annotations

from collections.abc import Iterable

__all__ = [
    "BodyError",
    "ClientDisconnected",
    "ConfigurationError",
    "DatabaseUnavailable",
    "Error",
    "NotRunningError",
    "ResponseError",
    "StartupError",
    "outage",
]


class Error(Exception):
    """The base class.  If one of these ends the process, `exit_code` is its exit code."""

    exit_code = 1


class ConfigurationError(Error):
    """The operator's fault: a setting is invalid.  The process exits with 2.

    `faults` holds one line for each fault, so that all can be corrected at once.  No line contains a secret.
    """

    exit_code = 2

    def __init__(self, faults: str | Iterable[str]) -> None:
        self.faults: tuple[str, ...] = (faults,) if isinstance(faults, str) else tuple(faults)
        super().__init__(self.faults)

    def __str__(self) -> str:
        return "\n".join(self.faults)


class StartupError(Error):
    """The environment's fault: the port is taken, the application cannot be imported, or libpq is missing.

    The process exits with 3 and leaves nothing bound.
    """

    exit_code = 3


class NotRunningError(Error, RuntimeError):
    """The caller's fault: `pkg.connection()` or a similar function was called where no service runs, or in a forked
    process."""


class DatabaseUnavailable(Error):
    """The database's fault: no connection was free in time, or the deadline of a query passed.

    If the application does not catch it, the client gets 503 with `Retry-After`; the cause is only in the log.
    """


def one_line(error: BaseException) -> str:
    """Its type and the first line of its text."""
    try:
        return f"{type(error).__name__}: {error}".splitlines()[0]
    except Exception:  # raised by its str()
        return type(error).__name__


def outage(error: BaseException | None) -> DatabaseUnavailable | None:
    """The DatabaseUnavailable that is this error or its cause, as of the errors of an ORM (`raise ... from ...`)."""
    for _ in range(16):  # causes may be a circle
        if error is None or isinstance(error, DatabaseUnavailable):
            return error
        error = error.__cause__
    return None


class ResponseError(Error):
    """The application's fault: it wrote a response that HTTP does not allow.

    The client gets 500 if nothing has been sent yet; otherwise the connection is closed, so that the client can see
    that the response is incomplete.
    """


class ClientDisconnected(Error, ConnectionError):
    """Nobody's fault: the client closed the connection, or stopped reading, before the response was complete."""


class BodyError(Error, OSError):
    """The client's fault: its request body was late (408), too large (413), malformed or incomplete (400).
    Or the server's, which had no room for the body (503).

    Raised where the application reads the body.  If the application does not catch it, the client gets `status`.
    """

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status
