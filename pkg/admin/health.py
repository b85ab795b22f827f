"""The health pages on the admin listener, for probes that reach no listener of the service.

With sockets that were only inherited nobody in the container can tell where they are, and a socket that the host has
opened may belong to another network namespace.  Text and status are those that the front gives.  But Python answers
here: while the interpreter hangs there is no answer, where the front would still give one.
"""

from __future__ import annotations

from collections.abc import Callable
from urllib.parse import parse_qsl

from pkg.admin.reply import Problem, Reply, accepts
from pkg.health.pages import Answers

__all__ = ["HealthPages"]

_OWN = ("statusz", "metrics", "debug", "drain")  # the first parts of the admin listener's paths, which stay its own
_PASSED_ON = ("Retry-After", "x-envoy-degraded")  # the listener itself sends the others


class HealthPages:
    """`find(path)`: the answers of a health page as text, verbose text and JSON; None if there is no such page."""

    def __init__(self, find: Callable[[str], Answers | None]) -> None:
        self._find = find

    def answer(self, method: str, target: str, accept: str) -> Reply | None:
        """The page, or None if there is none of this path.  Raises Problem for another method than GET and HEAD."""
        path, _, query = target.partition("?")
        found = None if path.split("/")[1:2] in [[own] for own in _OWN] else self._find(path)
        if found is None:
            return None
        if method not in ("GET", "HEAD"):
            raise Problem(405, f"{path} allows only GET, HEAD", Allow="GET, HEAD")
        parameters = dict(parse_qsl(query[:1024], keep_blank_values=True))
        is_json = parameters.get("format") == "json"
        if "verbose" in parameters and not is_json:
            form = 1
        else:
            form = 2 if is_json or any(accepts(accept, f"application/{name}json") for name in ("", "health+")) else 0
        status, head, body = found[form]
        fields = dict(line.split(": ", 1) for line in head.decode().splitlines())
        return Reply(
            body, fields["Content-Type"], status, {name: fields[name] for name in _PASSED_ON if name in fields}
        )
