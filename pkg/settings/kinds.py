"""How the text of a setting becomes a value, and the value text again: durations, sizes, addresses.

It knows no setting by name; `declared` says which setting has which kind.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from typing import Any, Generic, NamedTuple, TypeVar, overload

from pkg.settings.database_url import parse_database_url, redact_url
from pkg.settings.listen import parse_endpoint, parse_endpoints
from pkg.settings.secrets import HIDDEN

T = TypeVar("T")


class Kind(NamedTuple, Generic[T]):
    """How a value is read, and shown again.  `parse` raises ValueError, whose text completes "NAME: 'text' ..."."""

    metavar: str
    parse: Callable[[str], T]
    show: Callable[[T], str] = str
    redacts: bool = False  # whether `show` leaves out what is secret of a value, so that the rest may be shown


def _text(text: str) -> str:
    if not text.isprintable():
        raise ValueError("contains control characters")
    return text


def _integer(text: str) -> int:
    if not re.fullmatch(r"-?[0-9]{1,15}", text):
        raise ValueError("is not a whole number")
    return int(text)


def _port(text: str) -> int:
    if re.match(r"(tcp|udp|sctp)://", text):
        raise ValueError(
            "is a Kubernetes service link, not a port: set PORT in the container's env, or enableServiceLinks: false"
        )
    return _integer(text)


_SECONDS = {"ms": 0.001, "s": 1.0, "": 1.0, "m": 60.0, "h": 3600.0}


def _duration(text: str) -> float:
    match = re.fullmatch(r"(-?[0-9]{1,12}(?:\.[0-9]{1,9})?) ?(ms|s|m|h|)", text)
    if match is None:
        raise ValueError("is not a duration such as 5, 0.5, 500ms, 5s, 2m or 1h")
    return float(match[1]) * _SECONDS[match[2]]


def _show_duration(seconds: float) -> str:
    if 0 < seconds < 1:
        return f"{seconds * 1000:.10g}ms"
    if seconds >= 3600 and seconds % 3600 == 0:
        return f"{seconds / 3600:.10g}h"
    return f"{seconds:.10g}s"


_BYTES = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}


def _size(text: str) -> int:
    match = re.fullmatch(r"(-?[0-9]{1,15}) ?(?:([kmgt])(?:ib?)?|b|)", text.lower())
    if match is None:
        raise ValueError("is not a size such as 65536, 64k, 64KiB, 1MiB or 1GiB")
    return int(match[1]) * _BYTES[match[2] or ""]


def _show_size(size: int) -> str:
    for unit, suffix in ((1 << 40, "TiB"), (1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")):
        if size and size % unit == 0:
            return f"{size // unit}{suffix}"
    return str(size)


_TRUTH = {"true": True, "1": True, "yes": True, "on": True, "false": False, "0": False, "no": False, "off": False}


def _boolean(text: str) -> bool:
    try:
        return _TRUTH[text.lower()]
    except KeyError:
        raise ValueError("is neither true nor false") from None


def choice(*words: str, **aliases: str) -> Kind[str]:
    def parse(text: str) -> str:
        word = aliases.get(text.lower(), text.lower())
        if word not in words:
            raise ValueError(f"is not one of {', '.join(words)}")
        return word

    return Kind("|".join(words), parse)


def _app(text: str) -> str:
    name = r"[^\W\d]\w*(?:\.[^\W\d]\w*)*"
    if re.fullmatch(r"[^:]*\.py", text):
        raise ValueError("is a file: write the name of its module and the application's name in it, as in shop.web:app")
    # A name without dots is more likely a mistyped command than a module.
    if text and not re.fullmatch(rf"{name}:{name}(\(\))?|{name}\.{name}", text):
        raise ValueError("is not module:attribute or module:factory()")
    return text


def _page(text: str) -> str:
    if len(text) > 200 or not text or _path_prefix(text) == "/":
        raise ValueError("is not a path such as /healthz")
    return text


def _directory(text: str) -> str:
    if not os.path.isdir(_text(text)):
        raise ValueError("is not a directory")
    if not os.access(text, os.W_OK | os.X_OK):
        raise ValueError("is not writable")
    return text


def _path_prefix(text: str) -> str:
    if not re.fullmatch(r"(/[A-Za-z0-9._~!$&'()*+,;=:@-]+)*", text):
        raise ValueError("is not a path such as /shop (it begins with a slash and does not end with one)")
    return text


def _host(text: str) -> str:
    host = text[1:-1] if text.startswith("[") and text.endswith("]") else text
    if not re.fullmatch(r"[A-Za-z0-9._-]+|(?=[^:]*:[^:]*:)[0-9A-Fa-f:.]+(?:%[A-Za-z0-9._-]+)?", host):
        raise ValueError("is not a host name or an IP address (the port is set with PORT)")
    return host


def parse_address(text: str) -> tuple[str, int] | None:
    """Host and port of `host:port` or `[v6]:port`; None for `off`.  Raises ValueError."""
    if text.lower() == "off":
        return None
    host, _, port = text.rpartition(":")
    if not re.fullmatch(r"[0-9]{1,5}", port) or int(port) > 65535 or (":" in host and not host.startswith("[")):
        raise ValueError("is neither off nor host:port")
    try:
        return _host(host), int(port)
    except ValueError:
        raise ValueError("is neither off nor host:port") from None


def _address(text: str) -> str:
    address = parse_address(text)
    if address is None:
        return "off"
    return show_address(*address)


def show_address(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def is_loopback(host: str) -> bool:
    return host in ("localhost", "::1") or re.fullmatch(r"(::ffff:)?127(\.[0-9]{1,3}){3}", host.lower()) is not None


def _listen(text: str) -> str:
    return ",".join(str(endpoint) for endpoint in parse_endpoints(text))


def _health(text: str) -> str:
    if not text:
        return ""
    endpoint = parse_endpoint(text)
    if endpoint.kind not in ("tcp", "unix"):
        raise ValueError("is neither host:port, :port nor unix:PATH")
    return str(endpoint)


def _networks(text: str) -> str:
    if not text:
        return ""
    import ipaddress  # takes 3 ms, so it is imported only if a proxy is trusted

    networks = []
    for part in map(str.strip, text.split(",")):
        if part == "unix":
            networks.append(part)
            continue
        try:
            networks.append(str(ipaddress.ip_network(part)))
        except ValueError:
            raise ValueError("is not a comma-separated list of networks such as 10.0.0.0/8, fd00::/8, unix") from None
    return ",".join(networks)


def _token(text: str) -> str:
    # The token is sent in a header field (RFC 6750, 2.1); a short one could be guessed.
    if text and not re.fullmatch(r"[\x21-\x7e]{8,512}", text):
        raise ValueError("must be 8 to 512 visible ASCII characters")
    return text


PATH = Kind("PATH", _text)
DIRECTORY = Kind("DIR", _directory)
INTEGER = Kind("N", _integer)
PORT = Kind("PORT", _port)
DURATION = Kind("DURATION", _duration, _show_duration)
SIZE = Kind("SIZE", _size, _show_size)
BOOLEAN = Kind("BOOL", _boolean, lambda value: "true" if value else "false")
APP = Kind("APP", _app)
PATH_PREFIX = Kind("PATH", _path_prefix)
PAGE = Kind("PATH", _page)
HOST = Kind("HOST", _host)
ADDRESS = Kind("HOST:PORT|off", _address)
LISTEN = Kind("ADDRESS,...", _listen)
HEALTH = Kind("ADDRESS", _health)
NETWORKS = Kind("CIDR,...", _networks)
URL = Kind("URL", parse_database_url, redact_url, redacts=True)
TOKEN = Kind("TOKEN", _token)


class SecretFile(NamedTuple):
    """The setting that names the file from which a secret may be read instead.

    `is_reread`: the part that uses the secret reads the file again whenever it needs it.  Its content is then only
    checked at start and not kept as the value, since a copy would become outdated.
    """

    setting: str
    is_reread: bool = False


class Implied(NamedTuple, Generic[T]):
    """The value that a setting takes, unless it is set, if `test` is true of another setting's value."""

    value: T
    setting: str
    test: Callable[[Any], bool]


class Named(NamedTuple):
    """That a setting exists once more for each of several things with a name, set by environment variables only.

    `variable`: their variable, with {} for the name.  `inherits`: whether the setting itself is their default.
    `needs`: as of `Setting`, for those with a name.
    """

    variable: str
    inherits: bool = True
    needs: str = ""


class Setting(Generic[T]):
    """One setting, declared as an attribute of `Settings`, and the descriptor that reads its value."""

    def __init__(
        self,
        kind: Kind[T],
        default: T,
        help: str,
        low: T | None = None,
        high: T | None = None,
        *,
        environment: str = "",
        flag: str = "",
        secret: bool = False,
        basic: bool = False,
        former: str = "",
        file: SecretFile | None = None,
        implied: Implied[T] | None = None,
        needs: str = "",
        least_if_on: T | None = None,
        replaces: tuple[str, ...] = (),
        repeats: bool = False,
        named: Named | None = None,
    ) -> None:
        self.kind = kind
        self.default = default
        self.help = help
        self.low = low
        self.high = high
        self.environment = environment
        self.flag = flag
        self.secret = secret
        self.former = former  # a name that it had once; its variable and its flag are accepted, with a warning
        self.file = file
        self.implied = implied
        self.needs = needs  # a truth that is declared earlier; while it is false, this setting is not even read
        self.least_if_on = least_if_on  # 0 means off, and a value between it and this one is a fault
        self.replaces = replaces  # the settings in whose place this one is used, if it is set
        self.repeats = repeats  # its flag may be given several times; commas join what was typed
        self.named = named  # how it is called for one of several things with a name
        self.general = ""  # of a setting for a name: the setting that it is made of
        self.basic = basic  # one of those that people need first: `--help` shows it, `--help-all` shows every setting

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name
        self.environment = self.environment or f"PKG_{name.upper()}"
        self.flag = self.flag or "--" + name.replace("_", "-")
        self.former_environment = f"PKG_{self.former.upper()}" if self.former else ""
        self.former_flag = "--" + self.former.replace("_", "-") if self.former else ""

    def variable(self, name: str) -> str:
        """The environment variable of this setting for a name; its own for ""."""
        return self.named.variable.format(name.upper()) if name and self.named is not None else self.environment

    def called(self, name: str) -> str:
        """The name of this setting for a name; its own for ""."""
        return self.variable(name).removeprefix("PKG_").lower() if name else self.name

    def for_name(self, name: str, inherited: T, others: Mapping[str, Setting[Any]]) -> Setting[T]:
        """This setting for a name.  `inherited`: the value of this one.  `others`: the settings to which it refers."""
        assert self.named is not None
        setting: Setting[T] = object.__new__(Setting)
        setting.__dict__.update(vars(self))
        setting.name, setting.general, setting.environment = self.called(name), self.name, self.variable(name)
        setting.flag = setting.former = setting.former_environment = setting.former_flag = ""
        setting.needs = others[self.needs].called(name) if self.needs else self.named.needs
        if self.named.inherits:
            setting.default = inherited
        if self.file is not None:
            setting.file = self.file._replace(setting=others[self.file.setting].called(name))
        if self.implied is not None:
            setting.implied = self.implied._replace(setting=others[self.implied.setting].called(name))
        return setting

    @overload
    def __get__(self, instance: None, owner: type) -> Setting[T]: ...
    @overload
    def __get__(self, instance: object, owner: type) -> T: ...
    def __get__(self, instance: Any, owner: type) -> Setting[T] | T:
        if instance is None:
            return self
        value: T = instance.value(self.name)
        return value

    def parse(self, text: str) -> T:
        """The value of a text.  Raises ValueError with a phrase that says what is wrong and contains no secret."""
        try:
            text.encode()
        except UnicodeEncodeError:
            raise ValueError("is not valid UTF-8") from None
        value = self.kind.parse(text.strip())
        low: Any = self.low
        high: Any = self.high
        if low is not None and not low <= value <= high:
            raise ValueError(f"is not in the range {self.kind.show(low)} to {self.kind.show(high)}")
        return value

    def show(self, value: T) -> str:
        """The value as a person would write it; `***` for a secret, or for the secret parts of one."""
        if self.secret and not self.kind.redacts:
            return HIDDEN if value else ""
        return self.kind.show(value)

    def bounds(self) -> str:
        """ "1 to 1024", "0s or 1s to 24h" if 0 turns it off, or "" for a setting without bounds."""
        if self.low is None or self.high is None:
            return ""
        off = f"{self.kind.show(self.low)} or " if self.least_if_on is not None else ""
        least = self.low if self.least_if_on is None else self.least_if_on
        return f"{off}{self.kind.show(least)} to {self.kind.show(self.high)}"
