"""The database URL: what libpq accepts, and what of it may be shown.

It opens no connection, and no message contains a part of the URL.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from pkg.settings.secrets import HIDDEN

__all__ = ["is_primary_wanted", "parse_database_url", "redact_url"]

# Parameters whose values may be shown.  This lists what is safe and not what is secret, because in a mistyped URL a
# part of the password can stand where a parameter should be.
_OPEN_PARAMETERS = re.compile(
    r"host|hostaddr|port|dbname|user|application_name|client_encoding|connect_timeout|options|ssl(mode|cert|key|rootcert|crl)"
    r"|sslnegotiation|ssl_(min|max)_protocol_version|channel_binding|gssencmode|krbsrvname|service|passfile|requirepeer"
    r"|require_auth|target_session_attrs|load_balance_hosts|keepalives(_idle|_interval|_count)?|tcp_user_timeout"
)
_SESSION_ATTRS = ("any", "read-write", "read-only", "primary", "standby", "prefer-standby")


class _DatabaseUrl(NamedTuple):
    """A connection URI cut into the pieces that libpq (34.1.1.2, "Connection URIs") would see."""

    userinfo: str
    hosts: str
    path: str
    parameters: list[tuple[str, str]]


def _split_database_url(url: str) -> _DatabaseUrl:
    """Raises ValueError, whose text never contains a part of the URL."""
    scheme, separator, rest = url.partition("://")
    if not separator or scheme.lower() not in ("postgres", "postgresql", "postgresql+psycopg"):
        raise ValueError(
            "the URL does not begin with postgresql://, postgres:// or postgresql+psycopg://; "
            "if only the application uses it, set PKG_POOL=off"
        )
    if not url.isprintable() or " " in url:
        raise ValueError("the URL contains spaces or control characters: percent-encode them")
    if re.search(r"%(?![0-9A-Fa-f]{2})", rest):
        raise ValueError("the URL contains a % that is not followed by two hexadecimal digits: write it as %25")
    rest, _, query = rest.partition("?")
    authority, slash, path = rest.partition("/")
    if authority.count("@") > 1 or "@" in path:
        raise ValueError("the URL contains an @ in the password or a / before the @: percent-encode them (%40, %2F)")
    userinfo, _, hosts = authority.rpartition("@")
    # Other drivers take these for the beginning of parameters; libpq would take them for part of a name.
    if re.search("[;&=]", hosts + path):
        raise ValueError(
            "the URL contains ; & or = before the ?: parameters follow the ?; percent-encode these in names"
        )
    for host in hosts.split(","):
        match = re.fullmatch(r"(\[[0-9A-Fa-f:.%]+\]|[^:\[\]]*)(?::([0-9]*))?", host)
        if match is None or (match[2] and not 0 < int(match[2][:9]) < 65536):
            raise ValueError(
                "the URL's host or port is invalid (ports are 1 to 65535, IPv6 addresses are in brackets, "
                "and / ? # @ in a password are percent-encoded)"
            )
    from urllib.parse import unquote

    parameters = []
    for pair in query.split("&") if query else ():
        name, equals, value = pair.partition("=")
        if not equals or "=" in value or not name:
            raise ValueError("the URL's parameters are not of the form name=value&name=value")
        parameters.append((unquote(name), unquote(value)))
    attrs = dict(parameters).get("target_session_attrs", "any")
    if attrs not in _SESSION_ATTRS:
        raise ValueError(f"the URL's target_session_attrs is not one of {', '.join(_SESSION_ATTRS)}")
    return _DatabaseUrl(userinfo, hosts, slash + path, parameters)


def parse_database_url(text: str) -> str:
    """The URL in the form that libpq accepts (`postgresql+psycopg://` is SQLAlchemy's spelling).

    Raises ValueError, whose text never contains a part of the URL, so that it can be logged.
    """
    text = text.strip()
    if text:
        _split_database_url(text)
        text = "postgresql://" + text.partition("://")[2]
    return text


def redact_url(url: str) -> str:
    """The URL with `***` for its password, also in a parameter; only `***` if the URL cannot be parsed."""
    try:
        pieces = _split_database_url(url)
    except ValueError:
        return HIDDEN if url else ""
    user, colon, _ = pieces.userinfo.partition(":")
    userinfo = f"{user}:{HIDDEN}" if colon else user
    shown = f"postgresql://{userinfo}{'@' if pieces.userinfo else ''}{pieces.hosts}{pieces.path}"
    parameters = "&".join(
        f"{name}={value}" if _OPEN_PARAMETERS.fullmatch(name) else f"{name if 'pass' in name else HIDDEN}={HIDDEN}"
        for name, value in pieces.parameters
    )
    return f"{shown}?{parameters}" if parameters else shown


def is_primary_wanted(url: str) -> bool:
    attrs = [value for name, value in _split_database_url(url).parameters if name == "target_session_attrs"]
    return bool(attrs) and attrs[-1] in ("read-write", "primary")
