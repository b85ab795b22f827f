"""What is brought along from gunicorn and uvicorn is answered with what there is instead: flags, variables, APP."""

from __future__ import annotations

from pathlib import Path

import pytest

from pkg.cli import main as cli
from pkg.settings import other_servers
from pkg.settings.declared import SETTINGS, load
from tests.support.processes import ask, running

OWN = {setting.flag: setting.environment for setting in SETTINGS}


@pytest.mark.parametrize(
    ("arguments", "flag", "instead"),
    [
        (["-w", "4"], "-w", "--workers"),
        (["-w4"], "-w", "--workers"),
        (["-b", "0.0.0.0:80"], "-b", "HOST and PORT"),
        (["--bind", ":80"], "--bind", "HOST and PORT"),
        (["--bind=unix:/run/shop.sock"], "--bind", "PKG_LISTEN for several addresses, unix:PATH and fd:N"),
        (["--uds", "/run/shop.sock"], "--uds", "PKG_LISTEN, as unix:PATH"),
        (["--fd", "3"], "--fd", "PKG_LISTEN, as fd:N"),
        (["-k", "gthread"], "-k", "PKG_THREADS"),
        (["--timeout", "30"], "--timeout", "PKG_STUCK_TIMEOUT"),
        (["-t30"], "-t", "PKG_STUCK_TIMEOUT"),
        (["--graceful-timeout", "30"], "--graceful-timeout", "PKG_DRAIN_TIMEOUT"),
        (["--certfile", "x.pem"], "--certfile", "proxy"),
        (["--ssl-keyfile-password=secret"], "--ssl-keyfile-password", "proxy"),
        (["--forwarded-allow-ips=*"], "--forwarded-allow-ips", "PKG_TRUSTED_PROXIES"),
        (["--root-path", "/shop"], "--root-path", "SCRIPT_NAME"),
        (["--timeout-keep-alive", "5"], "--timeout-keep-alive", "PKG_IDLE_TIMEOUT"),
    ],
)
def test_flags(arguments: list[str], flag: str, instead: str, capsys: pytest.CaptureFixture[str]) -> None:
    for shop in ([], ["shop:app"]):
        assert cli.main([*arguments, *shop], {}) == 2
        out, err = capsys.readouterr()
        assert out == ""
        lines = err.splitlines()
        assert len(lines) == 1
        assert lines[0].startswith(f"pkg: {flag} is not a flag of this server; instead: ")
        assert instead in lines[0]
        assert "secret" not in err


def test_no_flag_of_ours_is_in_the_table() -> None:
    assert not set(OWN) & set(other_servers._INSTEAD)


def test_what_the_table_names_exists() -> None:
    texts = " ".join([*other_servers._INSTEAD.values(), *other_servers._VARIABLES.values()])
    named = {word.strip(",;()") for word in texts.split() if word.lstrip("(").startswith("PKG_")}
    assert named
    assert named <= {setting.environment for setting in SETTINGS}


def test_variables_are_one_warning() -> None:
    environ = {
        "GUNICORN_CMD_ARGS": "--bind=0.0.0.0:80 -w 4 --threads 2 --keyfile 'secret'",
        "UVICORN_PORT": "80",
        "UVICORN_TIMEOUT_KEEP_ALIVE": "5",
        "UVICORN_SSL_KEYFILE_PASSWORD": "secret",
        "UVICORN_SOMETHING": "1",
        "FORWARDED_ALLOW_IPS": "*",
    }
    (line,) = load(environ).warnings
    assert line.startswith("ignoring variables of gunicorn and uvicorn; what to use instead: ")
    for part in (
        "-w: --workers",
        "--bind: HOST and PORT",
        "--threads: PKG_THREADS",
        "--keyfile: no counterpart: let a proxy",
        "UVICORN_PORT: PORT",
        "UVICORN_TIMEOUT_KEEP_ALIVE: PKG_IDLE_TIMEOUT",
        "UVICORN_SSL_KEYFILE_PASSWORD: no counterpart: let a proxy",
        "UVICORN_SOMETHING: no counterpart",
        "FORWARDED_ALLOW_IPS: PKG_TRUSTED_PROXIES",
    ):
        assert part in line
    assert "secret" not in line


@pytest.mark.parametrize(
    "environ", [{}, {"WEB_CONCURRENCY": "2"}, {"GUNICORN_PID": "1"}, {"UVICORN": "1"}, {"PORT": "80"}]
)
def test_no_warning_without_reason(environ: dict[str, str]) -> None:
    assert load(environ).warnings == ()


def test_arguments_that_no_shell_would_take() -> None:
    (line,) = load({"GUNICORN_CMD_ARGS": "--bind 'open"}).warnings
    assert line.endswith("GUNICORN_CMD_ARGS: flags of python -m pkg, or its variables")


WSGI = """
def {name}(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"{name}"]
"""


@pytest.mark.parametrize(
    ("source", "served"),
    [
        (WSGI.format(name="application") + WSGI.format(name="app"), "application"),
        (WSGI.format(name="app"), "app"),
    ],
)
def test_a_module_alone_in_the_service(tmp_path: Path, source: str, served: str) -> None:
    (tmp_path / "shop").mkdir()
    (tmp_path / "shop" / "wsgi.py").write_text(source)
    with running(tmp_path, "", app="shop.wsgi", PKG_ADMIN="off", FORWARDED_ALLOW_IPS="*") as process:
        assert ask(process.address, "/")[::2] == (200, served)
        warnings = [line["message"] for line in process.lines() if line["severity"] == "WARNING"]
        assert len(warnings) == 1
        assert "FORWARDED_ALLOW_IPS" in warnings[0]


def test_a_module_without_either(tmp_path: Path) -> None:
    (tmp_path / "shop").mkdir()
    (tmp_path / "shop" / "wsgi.py").write_text("")
    with running(tmp_path, "", app="shop.wsgi", PKG_ADMIN="off", ready=False) as process:
        assert process.process.wait(15) == 3
        assert (
            "APP 'shop.wsgi': the module has neither application nor app; write shop.wsgi:attribute" in process.errors()
        )


@pytest.mark.parametrize("text", ["web.py", "shop/web.py"])
def test_a_file_is_no_module(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([text], {}) == 2
    assert "is a file: write the name of its module" in capsys.readouterr().err
