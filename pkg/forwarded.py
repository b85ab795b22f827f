"""X-Forwarded-For and X-Forwarded-Proto of configured proxies: who the client is, and by which scheme it came.

It believes nobody else: a client may write these headers too.  (The PROXY protocol is read by the front.)
"""

from __future__ import annotations

from collections.abc import Sequence
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from typing import Any

__all__ = ["Forwarded", "networks"]

MAX_ADDRESS = 64  # characters; the scope of an IPv6 address ("fe80::1%eth0") has no limit of its own


def networks(text: str) -> list[IPv4Network | IPv6Network]:
    """The networks of a list such as `10.0.0.0/8,fd00::/8`."""
    return [ip_network(part) for part in text.split(",")]


class Forwarded:
    """To be called with each request ahead of its handler.  `proxies`: the networks that are believed."""

    def __init__(self, proxies: Sequence[IPv4Network | IPv6Network]) -> None:
        self._proxies = tuple(proxies)

    def _is_proxy(self, text: str) -> bool:
        try:
            address = ip_address(text)
        except ValueError:
            return False
        return any(address in network for network in self._proxies if network.version == address.version)

    def __call__(self, request: Any) -> None:
        peer, _ = request.client_address
        if not self._is_proxy(peer):
            return
        hops = [
            hop.strip()
            for name, value in request.headers
            if name.lower() == "x-forwarded-for"
            for hop in value.split(",")
        ]
        for hop in reversed(hops):  # each proxy has appended whom it saw; the first one that is no proxy is the client
            if len(hop) > MAX_ADDRESS:
                break
            try:
                ip_address(hop)
            except ValueError:
                break
            request.client_address = (hop, 0)
            if not self._is_proxy(hop):
                break
        scheme = (request.header(b"x-forwarded-proto") or "").strip().lower()
        if scheme in ("http", "https"):
            request.scheme = scheme
