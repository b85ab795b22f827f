"""Where the health pages are, and which paths of the application they take from it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pkg.errors import ConfigurationError
from pkg.service.routes import own_routes
from pkg.settings.declared import load
from tests.support.ports import free_port
from tests.support.processes import ask, running

PATHS = ("/healthz", "/livez", "/readyz")

FLASK = """
from flask import Flask

app = Flask(__name__)

@app.get("/healthz")
def healthz():
    return "the application's own"

@app.get("/<path:rest>")
def rest(rest):
    return "the rest: " + rest
"""

DJANGO = """
import sys, types
import django
from django.conf import settings
from django.core.wsgi import get_wsgi_application
from django.http import HttpResponse
from django.urls import include, path, re_path

def own(request, rest=""):
    return HttpResponse("the application's own")

urls = types.ModuleType("application_urls")
sys.modules["application_urls"] = urls
urls.urlpatterns = [
    path("readyz/", own),
    path("", include([path("livez", own)])),
    re_path("^(?P<rest>.*)$", own),
]
settings.configure(ROOT_URLCONF="application_urls", ALLOWED_HOSTS=["*"], SECRET_KEY="x")
app = get_wsgi_application()
"""


def shadow_lines(process: Any) -> list[str]:
    return [text for text in process.messages() if "the health pages hide" in text]


def test_flask_in_the_service(tmp_path: Path) -> None:
    with running(tmp_path, FLASK, PKG_ADMIN="off") as process:
        (line,) = shadow_lines(process)
        assert line.startswith("the health pages hide the application's own /healthz; liveness_path and readiness_path")
        assert ask(process.address, "/healthz")[::2] == (200, "ok")
        assert ask(process.address, "/other")[::2] == (200, "the rest: other")


def test_other_paths_in_the_service(tmp_path: Path) -> None:
    moved = {"PKG_LIVENESS_PATH": "/_health/live", "PKG_READINESS_PATH": "/_health/ready"}
    with running(tmp_path, FLASK, PKG_ADMIN="off", **moved) as process:
        assert not shadow_lines(process)
        assert ask(process.address, "/healthz")[::2] == (200, "the application's own")
        assert ask(process.address, "/livez")[::2] == (200, "the rest: livez")
        assert ask(process.address, "/readyz")[::2] == (200, "the rest: readyz")
        assert ask(process.address, "/_health/live")[::2] == (200, "ok")
        assert ask(process.address, "/_health/ready/startup")[::2] == (200, "ok")
        for arguments in ([], ["--ready"]):
            probe = subprocess.run(
                [sys.executable, "-m", "pkg", "probe", *arguments],
                env={"PORT": str(process.address[1]), "HOST": "127.0.0.1", **moved},
                cwd=Path(__file__).parents[2],
                capture_output=True,
                text=True,
                timeout=30,
            )
            assert (probe.returncode, probe.stdout) == (0, "ok\n"), probe.stderr


def test_a_listener_of_their_own_leaves_the_paths_to_the_application(tmp_path: Path) -> None:
    health = ("127.0.0.1", free_port())
    apart = {"PKG_HEALTH": f"127.0.0.1:{health[1]}", "PKG_HEALTH_ON_MAIN": "false"}
    with running(tmp_path, FLASK, ready=False, PKG_ADMIN="off", **apart) as process:
        main = ("127.0.0.1", int(process.await_message(r"^serving .* on 127\.0\.0\.1:(\d+),")[1]))
        assert not shadow_lines(process)
        assert ask(main, "/healthz")[::2] == (200, "the application's own")
        assert ask(main, "/readyz")[::2] == (200, "the rest: readyz")
        assert ask(health, "/healthz")[::2] == (200, "ok")
        assert ask(health, "/readyz/startup")[::2] == (200, "ok")
        assert [ask(health, target)[0] for target in ("/", "/other", "/healthzz")] == [404, 404, 404]


def test_django_in_the_service(tmp_path: Path) -> None:
    with running(tmp_path, DJANGO, PKG_ADMIN="off") as process:
        (line,) = shadow_lines(process)
        assert line.startswith("the health pages hide the application's own /livez, /readyz;")


def test_django_asgi_in_the_service(tmp_path: Path) -> None:
    with running(tmp_path, DJANGO.replace("wsgi", "asgi"), PKG_ADMIN="off") as process:
        (line,) = shadow_lines(process)
        assert line.startswith("the health pages hide the application's own /livez, /readyz;")
        assert ask(process.address, "/other")[::2] == (200, "the application's own")


def test_a_project_whose_urls_are_broken_starts_all_the_same(tmp_path: Path) -> None:
    source = DJANGO.replace('"application_urls", ALLOWED', '"no_such_urls", ALLOWED')
    with running(tmp_path, source, PKG_ADMIN="off") as process:
        assert not shadow_lines(process)
        assert ask(process.address, "/")[0] == 500


def test_a_handler_class_without_routes(tmp_path: Path) -> None:
    source = "from http.server import SimpleHTTPRequestHandler as app\n"
    with running(tmp_path, source, PKG_ADMIN="off") as process:
        assert not shadow_lines(process)


# ------------------------------------------------------------------ the frameworks' routers


def flask() -> Any:
    import flask

    app = flask.Flask("shop")
    app.add_url_rule("/readyz/", "ready", lambda: "")
    app.add_url_rule("/livez", "live", lambda: "", methods=["POST"])
    app.add_url_rule("/<anything>", "anything", lambda anything: "", methods=["GET", "POST"])
    return app


def flask_wrapped() -> Any:
    from werkzeug.middleware.proxy_fix import ProxyFix

    return ProxyFix(flask().wsgi_app)


def bottle() -> Any:
    import bottle

    app = bottle.Bottle()
    for path in ("/readyz", "/livez", "/<anything:path>"):
        app.route(path, callback=lambda anything="": "")
    return app


def falcon() -> Any:
    import falcon

    class Resource:
        def on_get(self, request: Any, response: Any, **_: str) -> None: ...

    app = falcon.App()
    for path in ("/readyz", "/livez"):
        app.add_route(path, Resource())
    app.add_route("/{anything}", Resource())
    return app


def pyramid() -> Any:
    from pyramid.config import Configurator

    config = Configurator()
    config.add_route("ready", "/readyz")
    config.add_route("live", "livez")
    config.add_route("all", "/*rest")
    return config.make_wsgi_app()


async def answer(request: Any) -> None: ...


def starlette() -> Any:
    from starlette.applications import Starlette
    from starlette.middleware.gzip import GZipMiddleware
    from starlette.routing import Mount, Route

    below = Mount("", routes=[Route("/livez", answer)])
    routes = [Route("/readyz/", answer), Mount("/api", routes=[Route("/healthz", answer)]), below]
    return GZipMiddleware(Starlette(routes=[*routes, Route("/{anything:path}", answer)]))


def fastapi() -> Any:
    import fastapi

    app, router, inner = fastapi.FastAPI(), fastapi.APIRouter(prefix="/api"), fastapi.APIRouter()
    app.get("/readyz")(answer)
    router.get("/healthz")(answer)
    inner.get("/livez")(answer)
    app.include_router(router)
    app.include_router(inner)
    app.get("/{anything:path}")(answer)
    return app


def channels() -> Any:
    from channels.routing import ProtocolTypeRouter

    return ProtocolTypeRouter({"http": starlette(), "websocket": answer})


FRAMEWORKS = [flask, flask_wrapped, bottle, falcon, pyramid, starlette, fastapi, channels]


@pytest.mark.filterwarnings("ignore")  # of Pyramid's own imports
@pytest.mark.parametrize("make", FRAMEWORKS, ids=lambda make: make.__name__)
def test_routers(make: Any) -> None:
    assert own_routes(make(), PATHS) == ["/livez", "/readyz"]


def test_unknown_applications_have_no_routes() -> None:
    class Round:
        def __init__(self) -> None:
            self.app = self

    class Broken:
        class url_map:
            @staticmethod
            def iter_rules() -> Any:
                raise RuntimeError

    for app in (lambda environ, start_response: [], print, Round(), Broken()):
        assert own_routes(app, PATHS) == []


# ------------------------------------------------------------------ the settings


@pytest.mark.parametrize("text", ["healthz", "/", "/healthz/", "/a b", "/a?b", "/é", "/" + "a" * 200])
def test_what_is_no_path(text: str) -> None:
    with pytest.raises(ConfigurationError, match="is not a path such as"):
        load({"PKG_LIVENESS_PATH": text})


def test_both_pages_at_one_path() -> None:
    with pytest.raises(ConfigurationError, match="PKG_READINESS_PATH: is the same path as liveness_path"):
        load({"PKG_READINESS_PATH": "/healthz"})
