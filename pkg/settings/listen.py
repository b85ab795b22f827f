"""The addresses on which the server listens, as text and as values: `PKG_LISTEN`, `PKG_HEALTH`.

It opens no socket and resolves no name.  The command `probe` reads these settings every few seconds in every container,
so this module imports nothing that takes time.
"""

from __future__ import annotations

__all__ = ["Endpoint", "parse_endpoint", "parse_endpoints"]

MAX_ENDPOINTS = 16
MAX_PATH_SIZE = 107  # bytes: sockaddr_un has 108, with the null byte at the end (unix(7))
_FDS = range(3, 1024)  # 0 to 2 are the standard streams; systemd begins with 3 (sd_listen_fds(3))
_EXAMPLES = "0.0.0.0:8080, [::]:8080, :8080, unix:/run/app.sock, fd:3 or systemd"
_LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789._-"


class Endpoint:
    """One address.  `str()` of it is the normalized text, which `parse_endpoint()` reads again.

    `kind`: "tcp" with `host` and `port` (0: the kernel chooses one), "unix" with `path` and `mode` (None: as the umask
    says), "fd" with the number `fd` of an inherited descriptor, or "systemd" for all descriptors that it passes.
    """

    __slots__ = ("fd", "host", "kind", "mode", "path", "port")

    def __init__(
        self, kind: str, *, host: str = "", port: int = 0, path: str = "", mode: int | None = None, fd: int = -1
    ) -> None:
        self.kind = kind
        self.host = host
        self.port = port
        self.path = path
        self.mode = mode
        self.fd = fd

    def __str__(self) -> str:
        if self.kind == "tcp":
            return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"
        if self.kind == "unix":
            return f"unix:{self.path}" if self.mode is None else f"unix:{self.path}?mode={self.mode:o}"
        return f"fd:{self.fd}" if self.kind == "fd" else self.kind

    def __repr__(self) -> str:
        return f"Endpoint({str(self)!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Endpoint) and str(self) == str(other)

    def __hash__(self) -> int:
        return hash(str(self))

    def overlaps(self, other: Endpoint) -> bool:
        """Whether the two cannot both be opened, as far as their texts tell."""
        if self.kind != other.kind:
            return False
        if self.kind == "unix":
            return self.path == other.path
        if self.kind != "tcp":
            return self == other
        if self.port != other.port or self.port == 0:  # each of several with port 0 gets a port of its own
            return False
        return self.host == other.host or self._includes(other) or other._includes(self)

    def _includes(self, other: Endpoint) -> bool:
        """Whether this is the wildcard of the other's address family.  `::` accepts IPv4 as well (ipv6(7))."""
        is_ipv4 = not other.host.strip("0123456789.")
        return (self.host == "0.0.0.0" and is_ipv4) or (self.host == "::" and (is_ipv4 or ":" in other.host))


def parse_endpoints(text: str) -> tuple[Endpoint, ...]:
    """The addresses of a list that is separated by commas; () for an empty text.

    Raises ValueError with a phrase that completes "PKG_LISTEN: 'text' ..." and repeats nothing that could be a secret.
    """
    if not text.strip():
        return ()
    parts = text.split(",")
    if len(parts) > MAX_ENDPOINTS:
        raise ValueError(f"has more than {MAX_ENDPOINTS} addresses")
    endpoints: list[Endpoint] = []
    for number, part in enumerate(parts, 1):
        try:
            endpoint = parse_endpoint(part)
        except ValueError as error:
            raise ValueError(f"(address {number}) {error}" if len(parts) > 1 else str(error)) from None
        for other, earlier in enumerate(endpoints, 1):
            if endpoint.overlaps(earlier):
                how = "is the same as" if str(endpoint) == str(earlier) else "overlaps with"
                raise ValueError(f"(address {number}) {how} address {other}")
        endpoints.append(endpoint)
    return tuple(endpoints)


def parse_endpoint(text: str) -> Endpoint:
    """One address.  Raises ValueError as `parse_endpoints()` does."""
    text = text.strip()
    if text == "systemd":
        return Endpoint("systemd")
    scheme, colon, rest = text.partition(":")
    if colon and scheme == "unix":
        return _unix(rest)
    if colon and scheme == "fd":
        if not _is_number(rest, 4) or int(rest) not in _FDS:
            raise ValueError(f"is not the number of a descriptor from {_FDS[0]} to {_FDS[-1]}, as in fd:3")
        return Endpoint("fd", fd=int(rest))
    return _tcp(text)


def _unix(text: str) -> Endpoint:
    path, mark, query = text.partition("?")
    mode: int | None = None
    if mark:
        name, _, digits = query.partition("=")
        if name != "mode" or not 1 <= len(digits) <= 4 or digits.strip("01234567") or int(digits, 8) > 0o777:
            raise ValueError("has something else after the question mark than mode=0 to mode=777, as in ?mode=660")
        mode = int(digits, 8)
    if not path or path.endswith("/"):
        raise ValueError("has no file name, as in unix:/run/app.sock")
    if path.startswith("@"):
        raise ValueError(
            "is an abstract socket, which no file permissions protect: use a path, as in unix:/run/app.sock"
        )
    if path.startswith("//"):
        raise ValueError("has two slashes after unix: write one, as in unix:/run/app.sock")
    if not path.isprintable():
        raise ValueError("contains control characters")
    if len(path.encode()) > MAX_PATH_SIZE:
        raise ValueError(f"has a path of more than {MAX_PATH_SIZE} bytes, which no Unix socket can have")
    return Endpoint("unix", path=path, mode=mode)


def _tcp(text: str) -> Endpoint:
    host, colon, port = text.rpartition(":")
    if not colon or not _is_number(port, 5) or int(port) > 65535:
        raise ValueError(f"is not an address such as {_EXAMPLES}")
    if host.startswith("[") and host.endswith("]"):
        return Endpoint("tcp", host=_ipv6(host[1:-1]), port=int(port))
    host = host.lower()
    if any(character not in _LETTERS for character in host):
        raise ValueError(f"is not an address such as {_EXAMPLES}")
    return Endpoint("tcp", host=host or "0.0.0.0", port=int(port))


def _ipv6(text: str) -> str:
    """The shortest form of an IPv6 address, with its scope."""
    from _socket import AF_INET6, inet_ntop, inet_pton  # what `socket` is built on, without its imports

    host, mark, scope = text.partition("%")
    if (mark and not scope) or any(character not in _LETTERS for character in scope.lower()):
        raise ValueError("has no IPv6 address between the brackets, as in [::]:8080")
    try:
        return inet_ntop(AF_INET6, inet_pton(AF_INET6, host)) + mark + scope
    except (OSError, ValueError):
        raise ValueError("has no IPv6 address between the brackets, as in [::]:8080") from None


def _is_number(text: str, digits: int) -> bool:
    return 1 <= len(text) <= digits and text.isascii() and text.isdecimal()
