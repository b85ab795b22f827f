"""What a server says when it refuses one more connection: it is alive then, and serves those that exist."""

from __future__ import annotations

import re

__all__ = ["is_one_too_many", "is_servers"]

# Messages of a server (SQLSTATE 53300: its own limit, the database's or the role's) and of PgBouncer when they refuse
# one more connection.  libpq has no SQLSTATE for a failed connection.
_ONE_TOO_MANY = re.compile(
    r"too many (?:clients|connections|database connections|user connections)"
    r"|remaining connection slots are reserved"
    r"|no more connections allowed"
)


def is_one_too_many(text: str) -> bool:
    """Whether the server's limit is why it has refused, by what libpq says."""
    return is_servers(text) and _ONE_TOO_MANY.search(text) is not None


def is_servers(text: str) -> bool:
    """Whether the server itself has said this, in any language.

    libpq writes "SEVERITY:  TEXT" then, with two spaces, both in the language of the server's `lc_messages`
    (fe-protocol3.c, pqBuildErrorMessage3); its own messages have one space.
    """
    return ":  " in text
