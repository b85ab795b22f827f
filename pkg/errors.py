"""The exceptions that callers of the package may meet, each saying whose fault it is and what follows from it.

It does not hold the C core's parse errors: those never leave the core, they are statuses on the wire.
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
]


class Error(Exception):
    """Root of the tree.  Where one ends the process, `exit_code` is what the process exits with."""

    exit_code = 1


class ConfigurationError(Error):
    """The operator's fault: a setting is wrong.  Exit 2, before anything is bound.

    `faults` holds one line for each wrong setting, so that all can be put right in one go.  No line holds a secret.
    """

    exit_code = 2

    def __init__(self, faults: str | Iterable[str]) -> None:
        self.faults: tuple[str, ...] = (faults,) if isinstance(faults, str) else tuple(faults)
        super().__init__(self.faults)

    def __str__(self) -> str:
        return "\n".join(self.faults)


class StartupError(Error):
    """The surroundings' fault: the port is taken, the application cannot be imported, libpq is missing.

    Exit 3, nothing stays bound.
    """

    exit_code = 3


class NotRunningError(Error, RuntimeError):
    """The caller's fault: `pkg.connection()` and its kin were used where no service runs, or in a forked process."""


class DatabaseUnavailable(Error):
    """The database's fault: no connection in time, or the query's deadline passed.

    An application that lets it through answers 503 with `Retry-After`; the cause is in the log, not in the response.
    """


class ResponseError(Error):
    """The application's fault: it wrote a response that HTTP does not allow.

    Answered with 500 if nothing has been sent yet, else the connection is closed so that the peer sees the cut.
    """


class ClientDisconnected(Error, ConnectionError):
    """Nobody's fault: the client has closed the connection, or stopped reading, before the response was out."""


class BodyError(Error, OSError):
    """The client's fault: its request body came late (408), was too large (413), malformed or cut short (400).

    Raised where the application reads the body; let through, it is answered with `status`.
    """

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status
