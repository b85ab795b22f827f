"""X-Forwarded-For and X-Forwarded-Proto from trusted proxies: the client's address and the scheme it used.

Fields from anybody else are ignored, since a client can write them as well.  (The front reads the PROXY protocol.)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from typing import Any

__all__ = ["Forwarded", "has_unix", "networks"]

MAX_ADDRESS = 64  # characters; the scope of an IPv6 address ("fe80::1%eth0") has no limit of its own


UNIX = "unix"  # stands in the list of trusted proxies for every peer on a Unix socket


def networks(text: str) -> list[IPv4Network | IPv6Network]:
    """The networks of a list such as `10.0.0.0/8,fd00::/8,unix`."""
    return [ip_network(part) for part in text.split(",") if part and part != UNIX]


def has_unix(text: str) -> bool:
    """Whether such a list contains the peers on Unix sockets, which have no address."""
    return UNIX in text.split(",")


class Forwarded:
    """Called with each request before its handler.

    `proxies`: the networks of the trusted proxies.  `unix`: whether peers on Unix sockets are trusted as well; their
    `client_address` is ("", 0).  `on_trusted` is called with each request of a trusted proxy.
    """

    def __init__(
        self,
        proxies: Sequence[IPv4Network | IPv6Network],
        *,
        unix: bool = False,
        on_trusted: Callable[[Any], object] | None = None,
    ) -> None:
        self._proxies = tuple(proxies)
        self._unix = unix
        self._on_trusted = on_trusted

    def _is_proxy(self, text: str) -> bool:
        try:
            address = ip_address(text)
        except ValueError:
            return False
        return any(address in network for network in self._proxies if network.version == address.version)

    def __call__(self, request: Any) -> None:
        peer, _ = request.client_address
        if not (self._is_proxy(peer) if peer else self._unix):
            return
        if self._on_trusted is not None:
            self._on_trusted(request)
        passed = 0  # hops added by trusted proxies
        for hop in reversed(_values(request, "x-forwarded-for")):
            # Each proxy has appended the address of its peer; the first one that is not a proxy is the client.
            address = _address(hop)
            if address is None:
                break
            request.client_address = address
            passed += 1
            if not self._is_proxy(address[0]):
                break
        schemes = _values(request, "x-forwarded-proto")
        if schemes:  # one for each hop, as above; a proxy that overwrites the field leaves a single one
            scheme = schemes[-min(max(passed, 1), len(schemes))].lower()
            scheme = {"ws": "http", "wss": "https"}.get(scheme, scheme)  # as Traefik says of a WebSocket
            if scheme in ("http", "https"):
                request.scheme = scheme


def _values(request: Any, wanted: str) -> list[str]:
    """The members of a list-valued field from all its lines in order (RFC 9110 5.3), without empty ones (5.6.1.2)."""
    return [
        member
        for name, value in request.headers
        if name.lower() == wanted
        for part in value.split(",")
        if (member := part.strip())
    ]


def _address(text: str) -> tuple[str, int] | None:
    """Address and port (0 if there is none) of `203.0.113.5`, `203.0.113.5:4711`, `2001:db8::1`, `[2001:db8::1]` or
    `[2001:db8::1]:4711`; None if it is not an address."""
    if len(text) > MAX_ADDRESS:
        return None
    host, port = text, ""
    if text.startswith("["):
        host, _, rest = text[1:].partition("]")
        if rest[:1] not in ("", ":") or ":" not in host or rest == ":":
            return None
        port = rest[1:]
    elif text.count(":") == 1:
        host, _, port = text.partition(":")
        if not port:
            return None
    if port and not (port.isascii() and port.isdecimal() and len(port) <= 5 and int(port) <= 65535):
        return None
    try:
        address = ip_address(host)
    except ValueError:
        return None
    # A dual-stack socket reports an IPv4 client in this form (RFC 4291 2.5.5.2); trusted_proxies and logs use IPv4.
    mapped = address.ipv4_mapped if address.version == 6 else None
    return host if mapped is None else str(mapped), int(port or 0)
