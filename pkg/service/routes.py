"""Finds out from its framework's router which paths an application serves; it calls no handler.

Only a route that names the path counts.  A catch-all route, as in a single-page application, also matches a path that
is written nowhere; this distinguishes the two.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

__all__ = ["own_routes"]

UNLIKELY = "-e3a1f6c2"  # a suffix that no path of an application has
DEPTH = 5  # maximum number of nested middleware layers


def own_routes(app: Any, paths: Sequence[str]) -> list[str]:
    """Those of `paths` for which the application has a route.  Empty for frameworks that are not known here."""
    for layer in _layers(app):
        try:
            match = _matcher(layer)
            if match is not None:
                return [path for path in paths if _is_named(match, path)]
        except (Exception, SystemExit):  # the application's URLs cannot be imported; its requests will show why
            return []
    return []


def _is_named(match: Callable[[str], object], path: str) -> bool:
    return any(
        match(written) is not None and match(written) != match(path + UNLIKELY + written[len(path) :])
        for written in (path, path + "/")
    )


def _layers(app: Any) -> Iterator[Any]:
    """The application and what it wraps, under the attribute names that middleware uses."""
    for _ in range(DEPTH):
        yield app
        own = getattr(app, "__dict__", {})
        inner = next((own[name] for name in ("application", "app", "wsgi_app") if name in own), None)
        if "application_mapping" in own:  # Channels' ProtocolTypeRouter
            inner = own["application_mapping"].get("http")
        app = getattr(inner, "__self__", inner)  # Flask's documentation wraps app.wsgi_app, a method
        if app is None:
            return


def _matcher(app: Any) -> Callable[[str], object] | None:
    """A function that maps a path to its route or None; None for an unknown framework."""
    module = type(app).__module__
    if hasattr(getattr(app, "url_map", None), "iter_rules"):  # werkzeug's: Flask and others
        return lambda path: next((rule.rule for rule in app.url_map.iter_rules() if rule.rule == path), None)
    if module.startswith("django."):
        return _django()
    if module.startswith("bottle"):
        return lambda path: next((route.rule for route in app.routes if route.rule == path), None)
    if module.startswith("falcon"):
        return lambda path: (app._router.find(path) or (None,))[0]
    if module.startswith("pyramid"):
        return _pyramid(app.registry)
    if isinstance(
        routes := getattr(getattr(app, "router", app), "routes", None), list
    ):  # Starlette's: FastAPI and others
        paths = set(_starlette(routes))
        return lambda path: path if path in paths else None
    return None


def _django() -> Callable[[str], object]:
    """Imports the project's URLs, which otherwise the first request would do."""
    from django.urls import Resolver404, resolve  # type: ignore[import-not-found,import-untyped,unused-ignore]

    def match(path: str) -> object:
        try:
            return resolve(path).route
        except Resolver404:
            return None

    return match


def _starlette(routes: Sequence[Any], prefix: str = "") -> Iterator[str]:
    """The paths of all routes, also of those below a Mount, and in FastAPI's routers that are included in others."""
    in_context = getattr(sys.modules.get("fastapi.routing"), "iter_route_contexts", None)  # where FastAPI has it
    for route in routes if in_context is None else in_context(routes):
        path = prefix + (getattr(route, "path", None) or "")
        below = getattr(getattr(route, "original_route", route), "routes", None)
        if below:
            yield from _starlette(below, path)
        else:
            yield path


def _pyramid(registry: Any) -> Callable[[str], object]:
    interfaces: Any = sys.modules["pyramid.interfaces"]
    mapper = registry.queryUtility(interfaces.IRoutesMapper)
    patterns = [] if mapper is None else [route.pattern for route in mapper.get_routes()]
    return lambda path: next((pattern for pattern in patterns if "/" + pattern.lstrip("/") == path), None)
