"""The command line as a person or a platform meets it: real processes, exit codes, what is printed where."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pkg import errors
from pkg.cli import main as cli
from pkg.settings.declared import HEADINGS, SETTINGS, Settings
from pkg.settings.kinds import Setting
from tests.support.answering import Answering
from tests.support.ports import free_port

ROOT = Path(__file__).parents[2]
PASSWORD = "hunter2"
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


def run(*arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    """`python -m pkg` in an environment of its own."""
    return subprocess.run(
        [sys.executable, "-m", "pkg", *arguments],
        cwd=ROOT,
        env={"PATH": os.environ["PATH"], "COLUMNS": "500", **environ},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
    )


@pytest.fixture
def answering() -> Iterator[Callable[..., Answering]]:
    with contextlib.ExitStack() as stack:

        def start(answer: bytes | Callable[[socket.socket], None], host: str = "127.0.0.1") -> Answering:
            server = Answering(answer, host)
            stack.callback(server.close)
            return server

        yield start


# --- help and version


def help_of(setting: Setting[Any]) -> str:
    default = setting.show(setting.default)
    facts = [setting.environment, f"default {default}" if default else "", setting.bounds()]
    return f"{setting.help} [{', '.join(fact for fact in facts if fact)}]"


@pytest.mark.parametrize("command", [(), ("serve",), ("config",)])
def test_help_all_shows_every_setting(command: tuple[str, ...]) -> None:
    result = run(*command, "--help-all")
    assert (result.returncode, result.stderr) == (0, "")
    text = " ".join(result.stdout.split())
    for setting in SETTINGS:
        assert help_of(setting) in text
        assert f" {setting.flag} " in text or f" {setting.flag}, --no-" in text


def test_help_all_shows_commands_exit_codes_and_signals() -> None:
    text = run("--help-all").stdout
    assert re.search(r"exit codes:\n  0 .*\n  1 .*\n  2 .*\n  3 ", text)
    assert all(name in text for name in ("SIGTERM", "SIGINT", "SIGUSR1"))
    assert all(f"  {command} " in text for command in cli.COMMANDS)


@pytest.mark.parametrize("command", [(), ("serve",), ("config",)])
def test_help_shows_the_settings_that_people_need_first(command: tuple[str, ...]) -> None:
    result = run(*command, "--help", COLUMNS="100")
    assert (result.returncode, result.stderr) == (0, "")
    assert len(result.stdout.splitlines()) <= 80  # two screens
    text = " ".join(result.stdout.split())
    basic = [setting for setting in SETTINGS if setting.basic]
    assert len(basic) == 16
    for setting in SETTINGS:
        assert (help_of(setting) in text) == setting.basic
    shown = set(re.findall(r"--[a-z-]+", result.stdout)) - {"--help", "--help-all", "--version", "--ready", "--json"}
    named = {flag for setting in basic for flag in (setting.flag, setting.flag.replace("--", "--no-", 1))}
    assert shown <= named
    assert f"--help-all shows all {len(SETTINGS)} settings" in text
    assert all(f"  {name} " in result.stdout for name in cli.COMMANDS) or command == ("config",)


def test_help_has_the_headings_of_what_it_shows() -> None:
    headings = re.findall(r"^(\w.*):$", run("--help").stdout, re.MULTILINE)
    assert headings == ["positional arguments", "options", *HEADINGS.values(), "commands"]


@pytest.mark.parametrize(
    "arguments", [("serve", "--help"), ("config", "--help"), ("probe", "--help"), ("admin", "--help")]
)
def test_each_command_has_help(arguments: tuple[str, ...]) -> None:
    result = run(*arguments)
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.startswith("usage: python -m pkg")


def test_version() -> None:
    result = run("--version")
    assert (result.returncode, result.stderr) == (0, "")
    psycopg = r"psycopg 3\.\d+\.\d+\S* \((c|binary|python)\), libpq \d+\.\d+"
    assert re.fullmatch(rf"pkg (\d+\.\d+\S*|unknown) \(Python 3\.\d+\.\d+\S*; {psycopg}\)\n", result.stdout)


# --- config


def test_config_shows_value_origin_default() -> None:
    result = run(
        "config",
        "--threads",
        "4",
        "--no-access-log",
        PORT="81",
        DATABASE_URL=f"postgres://u:{PASSWORD}@h/db",
        PKG_ADMIN_TOKEN="secret-token",
        PKG_THREADS="5",
        PKG_DRAIN_DELY="1",
    )
    assert result.returncode == 0
    lines = {line.split()[0]: line.split()[1:] for line in result.stdout.splitlines()}
    assert set(lines) == {"SETTING"} | {setting.name for setting in SETTINGS}
    assert lines["port"] == ["81", "environment", "PORT", "8080"]
    assert lines["threads"] == ["4", "flag", "--threads", "8"]
    assert lines["access_log"] == ["false", "flag", "--access-log", "true"]
    assert lines["max_queue"] == ["1024", "default", "1024"]
    assert lines["app"] == ["-", "default", "-"]
    assert lines["database_url"] == ["postgresql://u:***@h/db", "environment", "DATABASE_URL", "-"]
    assert lines["admin_token"] == ["***", "environment", "PKG_ADMIN_TOKEN", "-"]
    assert result.stderr == "pkg: warning: PKG_DRAIN_DELY is not a setting: did you mean PKG_DRAIN_DELAY?\n"


def test_config_as_json() -> None:
    result = run("config", "shop:app", "--json", PKG_ZZZZ="1", DATABASE_URL=f"postgres://u:{PASSWORD}@h/db")
    assert (result.returncode, result.stderr) == (0, "")
    assert PASSWORD not in result.stdout
    answer = json.loads(result.stdout)
    names = [row["name"] for row in answer["settings"]]
    assert names == [setting.name for setting in SETTINGS]
    assert answer["settings"][names.index("app")] == {
        "name": "app",
        "value": "shop:app",
        "origin": "flag",
        "default": "",
        "environment": "PKG_APP",
        "flag": "APP",
    }
    assert (answer["warnings"], answer["notes"]) == (["PKG_ZZZZ is not a setting"], [])


def test_config_lists_all_faults_at_once() -> None:
    result = run("config", "--threads", "0", "--drain-dely=3", PORT="x", DATABASE_URL=f"mysql://u:{PASSWORD}@h")
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.splitlines() == [
        "pkg: --drain-dely is not a flag: did you mean --drain-delay?",
        "pkg: PORT: 'x' is not a whole number",
        "pkg: --threads: '0' is not in the range 1 to 1024",
        "pkg: DATABASE_URL: the URL does not begin with postgresql://, postgres:// or postgresql+psycopg://; "
        "if only the application uses it, set PKG_POOL=off",
    ]


def test_config_as_markdown_is_the_page_of_the_settings() -> None:
    from pkg.settings.page import markdown

    result = run("config", "--markdown")
    assert (result.returncode, result.stdout, result.stderr) == (0, markdown() + "\n", "")


def test_config_with_nobody_reading() -> None:
    """Half a pipe or none at all is no reason for a traceback."""
    read, write = os.pipe()
    os.close(read)
    with open(write, "wb") as broken:
        result = subprocess.run(
            [sys.executable, "-m", "pkg", "config"], cwd=ROOT, stdout=broken, stderr=subprocess.PIPE, timeout=60
        )
    assert (result.returncode, result.stderr) == (1, b"")


# --- wrong usage: one clear line each, exit 2


@pytest.mark.parametrize("command", [[], ["serve"], ["config"]])
@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--prot", "80"], "--prot is not a flag: did you mean --port?"),
        (["--prot=80"], "--prot is not a flag: did you mean --port?"),
        (["--zzz"], "--zzz is not a flag (see --help-all)"),
        ([f"--database-ulr=postgres://u:{PASSWORD}@h"], "--database-ulr is not a flag: did you mean --database-url?"),
        (
            ["--database-ulr", f"postgres://u:{PASSWORD}@h"],
            "--database-ulr is not a flag: did you mean --database-url?",
        ),
        (["--port"], "argument --port: expected one argument (see --help-all)"),
        (["--por", "80"], "--por is not a flag: did you mean --port?"),
        (["a:b", "c:d"], "unexpected argument: only one APP can be given"),
        (["shop"], "APP: 'shop' is not module:attribute or module:factory()"),
        (["--port", "1", "probe"], "probe: the command must come first: python -m pkg COMMAND [flags]"),
        (["--port", "-1"], "--port: '-1' is not in the range 0 to 65535"),
        (["--threads", ""], "--threads: '' is not a whole number"),
    ],
)
def test_wrong_usage(command: list[str], arguments: list[str], line: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([*command, *arguments], {}) == 2
    assert capsys.readouterr() == ("", f"pkg: {line}\n")


def test_wrong_usage_of_a_process() -> None:
    result = run("--port", "x")
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr == "pkg: --port: 'x' is not a whole number\n"
    result = run("serve", DATABASE_URL_FILE="/nonexistent/url")
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr == "pkg: DATABASE_URL_FILE: '/nonexistent/url' cannot be read: No such file or directory\n"


# --- serve: what reaches the service


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """A service which only notes its settings and does what the second element of the list says."""
    seen: list[Any] = [None, 0]

    class Service:
        def __init__(self, settings: Settings) -> None:
            seen[0] = settings

        def run(self) -> int:
            if isinstance(seen[1], Exception):
                raise seen[1]
            return int(seen[1])

    module = types.ModuleType("pkg.service.service")
    module.Service = Service  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "pkg.service.service", module)
    return seen


@pytest.mark.parametrize(
    ("arguments", "app", "port"),
    [
        ([], "env:app", 1),
        (["serve"], "env:app", 1),
        (["shop:app"], "shop:app", 1),
        (["serve", "shop:app"], "shop:app", 1),
        (["shop:app", "--port", "2"], "shop:app", 2),
        (["--port=2", "shop:app"], "shop:app", 2),
        (["serve", "--port", "2"], "env:app", 2),
        (["serve", "--port", "2", "--", "shop:app"], "shop:app", 2),
    ],
)
def test_serve(service: list[Any], arguments: list[str], app: str, port: int) -> None:
    service[1] = 7
    assert cli.main(arguments, {"PKG_APP": "env:app", "PORT": "1"}) == 7
    assert (service[0].app, service[0].port) == (app, port)


@pytest.mark.parametrize(("flag", "value"), [("--access-log", True), ("--no-access-log", False)])
def test_serve_with_a_switch(service: list[Any], flag: str, value: bool) -> None:
    assert cli.main([flag, "shop:app"], {"PKG_ACCESS_LOG": str(not value)}) == 0
    assert service[0].access_log is value
    assert service[0].app == "shop:app"


@pytest.mark.parametrize(
    ("error", "code", "text"),
    [
        (errors.ConfigurationError(["one", "two"]), 2, "pkg: one\npkg: two\n"),
        (errors.StartupError("port 80 is taken"), 3, "pkg: port 80 is taken\n"),
        (errors.Error("else"), 1, "pkg: else\n"),
    ],
)
def test_errors_of_the_service(
    service: list[Any], error: Exception, code: int, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    service[1] = error
    assert cli.main([], {}) == code
    assert capsys.readouterr() == ("", text)


def test_serve_without_its_parts(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(sys.modules, "pkg.service.service", None)
    assert cli.main([], {}) == 3
    assert capsys.readouterr().err.startswith("pkg: the installation is incomplete: ")


def test_serve_fills_closed_descriptors() -> None:
    """With descriptor 1 closed, the first socket would become stdout and clients would read the log."""
    code = (
        "import os, sys, types; sys.modules['pkg.service.service'] = module = types.ModuleType('s')\n"
        "class Service:\n"
        "    def __init__(self, settings): pass\n"
        "    def run(self): return 10 + sum(os.readlink(f'/proc/self/fd/{fd}') == '/dev/null' for fd in (0, 1, 2))\n"
        "module.Service = Service\n"
        "from pkg.cli.main import main; sys.exit(main([], {}))"
    )
    command = f'exec "{sys.executable}" -c "$CODE" <&- >&- 2>&-'
    result = subprocess.run(["sh", "-c", command], cwd=ROOT, env=os.environ | {"CODE": code}, timeout=60)
    assert result.returncode == 13


def test_serve_without_stderr() -> None:
    command = f'exec "{sys.executable}" -m pkg 2>&-'
    environ = os.environ | {"PORT": "0", "HOST": "127.0.0.1", "PKG_ADMIN": "off", "LOG_FORMAT": "json"}
    with subprocess.Popen(["sh", "-c", command], cwd=ROOT, env=environ, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert any("serving health pages" in line for line in process.stdout), "it has ended"
            process.send_signal(signal.SIGINT)
            assert process.wait(30) == 0
        finally:
            process.kill()


# --- probe


def test_probe_of_a_process(answering: Callable[..., Answering]) -> None:
    server = answering(OK)
    result = run("probe", PORT=str(server.port))
    assert (result.returncode, result.stdout, result.stderr) == (0, "ok\n", "")
    head = server.requests[0].decode().split("\r\n")
    assert head[0] == "GET /healthz HTTP/1.1" and "Connection: close" in head
    assert len([line for line in head if line.startswith("Host: ")]) == 1


def test_probe_imports_nothing_heavy(answering: Callable[..., Answering]) -> None:
    server = answering(OK)
    code = (
        f"import sys; from pkg.cli.main import main; main(['probe', '--port={server.port}'], {{}}); print(*sys.modules)"
    )
    result = subprocess.run(
        [sys.executable, "-S", "-c", code],
        cwd=ROOT,
        env={"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert result.stderr == ""
    loaded = set(result.stdout.split())
    heavy = {"argparse", "logging", "http.client", "psycopg", "json", "threading", "encodings.idna", "urllib"}
    assert not loaded & heavy
    assert {name for name in loaded if name.startswith("pkg")} == {
        "pkg",
        "pkg.cli",
        "pkg.cli.main",
        "pkg.cli.probe",
        "pkg.cli.terminal",
    }


def say(*parts: bytes) -> Callable[[socket.socket], None]:
    def answer(connection: socket.socket) -> None:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for part in parts:
            connection.sendall(part)

    return answer


def stay_silent(connection: socket.socket) -> None:
    connection.recv(1)  # until the prober gives up


def keep_open(connection: socket.socket) -> None:
    connection.sendall(OK)
    connection.recv(1)


def reset(connection: socket.socket) -> None:
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")


@pytest.mark.parametrize(
    ("answer", "code", "out", "err"),
    [
        pytest.param(OK, 0, "ok\n", "", id="200"),
        pytest.param(keep_open, 0, "ok\n", "", id="200, connection kept open"),
        pytest.param(b"HTTP/1.0 200\r\n\r\n", 0, "200\n", "", id="200 without a body"),
        pytest.param(say(*(OK[i : i + 1] for i in range(len(OK)))), 0, "ok\n", "", id="byte by byte"),
        pytest.param(
            b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 16\r\n\r\ndatabase failed\n",
            1,
            "database failed\n",
            "",
            id="503",
        ),
        pytest.param(b"HTTP/1.1 204 No Content\r\n\r\n", 1, "204\n", "", id="only 200 is healthy"),
        pytest.param(b"HTTP/1.1 301 Moved\r\nContent-Length: 0\r\n\r\n", 1, "301\n", "", id="redirect"),
        pytest.param(
            b"HTTP/1.1 200 OK\r\n\r\nok\x1b[2J\xff\nsecond line", 0, "ok?[2J?\n", "", id="a terminal's controls"
        ),
        pytest.param(b"SSH-2.0-OpenSSH\r\n", 1, "", "the response is not HTTP", id="not HTTP"),
        pytest.param(b"HTTP/1.1 2xx OK\r\n\r\n", 1, "", "the response is not HTTP", id="a status that is none"),
        pytest.param(b"", 1, "", "the server closed the connection without a response", id="closed"),
        pytest.param(reset, 1, "", "Connection reset by peer", id="reset"),
        pytest.param(stay_silent, 1, "", "timed out", id="silent"),
    ],
)
def test_probe_answers(
    answering: Callable[..., Answering],
    capsys: pytest.CaptureFixture[str],
    answer: bytes | Callable[[socket.socket], None],
    code: int,
    out: str,
    err: str,
) -> None:
    server = answering(answer)
    timeout = "0.3" if answer is stay_silent else "30"
    assert cli.main(["probe", "--timeout", timeout], {"PORT": str(server.port)}) == code
    captured = capsys.readouterr()
    assert captured.out == out
    assert (err in captured.err) if err else captured.err == ""
    assert captured.err.count("\n") <= 1


@pytest.mark.parametrize(
    ("arguments", "target"),
    [
        ([], "/healthz"),
        (["--ready"], "/readyz"),
        (["--json"], "/healthz?format=json"),
        (["--ready", "--json"], "/readyz?format=json"),
    ],
)
def test_probe_targets(answering: Callable[..., Answering], arguments: list[str], target: str) -> None:
    server = answering(OK)
    assert cli.main(["probe", *arguments, f"--port={server.port}"], {"PORT": "tcp://10.0.0.1:80"}) == 0
    assert server.requests[0].startswith(f"GET {target} HTTP/1.1\r\n".encode())


def test_probe_shows_all_of_the_json(answering: Callable[..., Answering], capsys: pytest.CaptureFixture[str]) -> None:
    body = b'{\n "status": "pass"\n}\n'
    server = answering(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))
    assert cli.main(["probe", "--json", f"--port={server.port}"], {}) == 0
    assert json.loads(capsys.readouterr().out) == {"status": "pass"}


@pytest.mark.parametrize("host", ["", "0.0.0.0", "127.0.0.1", "localhost", "::"])
def test_probe_goes_to_the_loopback_address(answering: Callable[..., Answering], host: str) -> None:
    server = answering(OK)
    assert cli.main(["probe"], {"HOST": host, "PORT": str(server.port)}) == 0


def test_probe_over_ipv6(answering: Callable[..., Answering]) -> None:
    try:
        server = answering(OK, "::1")
    except OSError:
        pytest.skip("this machine has no IPv6")
    for host in ("::", "::1", "[::1]"):
        assert cli.main(["probe"], {"HOST": host, "PORT": str(server.port)}) == 0


def test_probe_of_nobody(capsys: pytest.CaptureFixture[str]) -> None:
    port = free_port()
    assert cli.main(["probe"], {"PORT": str(port)}) == 1
    assert capsys.readouterr() == ("", f"pkg: probe: 127.0.0.1 port {port}: [Errno 111] Connection refused\n")


@pytest.mark.parametrize(
    "arguments",
    [
        ["--nonsense"],
        ["--port"],
        ["--port", "x"],
        ["--port", "0"],
        ["--port", "65536"],
        ["--timeout", "0"],
        ["--timeout", "nan"],
        ["--timeout", "-1"],
        ["x"],
    ],
)
def test_probe_knows_two_exit_codes(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """Docker reserves 2 (HEALTHCHECK: "0: success, 1: unhealthy, 2: reserved")."""
    assert cli.main(["probe", *arguments], {}) == 1
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.startswith("pkg: probe: ") and captured.err.count("\n") == 1


def test_probe_with_stdout_closed(answering: Callable[..., Answering]) -> None:
    server = answering(OK)
    command = f'exec "{sys.executable}" -m pkg probe --port {server.port} >&- 2>&-'
    assert subprocess.run(["sh", "-c", command], cwd=ROOT, timeout=60).returncode == 0


# --- admin


def page(status: str, body: bytes) -> bytes:
    return b"HTTP/1.1 %s\r\nContent-Length: %d\r\n\r\n%s" % (status.encode(), len(body), body)


@pytest.mark.parametrize(
    ("arguments", "line", "accept"),
    [
        (["status"], "GET /statusz", "text/plain"),
        (["threads"], "GET /debug/threads", "text/plain"),
        (["requests"], "GET /debug/requests", "text/plain"),
        (["requests", "--json"], "GET /debug/requests", "application/json"),
        (["pool"], "GET /debug/pool", "text/plain"),
        (["metrics"], "GET /metrics", "text/plain"),
        (["memory"], "GET /debug/memory", "text/plain"),
        (["memory", "--seconds", "60s"], "POST /debug/memory?seconds=60", "text/plain"),
        (["profile"], "GET /debug/profile", "text/plain"),
        (["profile", "--seconds", "2.5", "--json"], "GET /debug/profile?seconds=2.5", "application/json"),
        (["log-level", "debug"], "POST /debug/log-level?level=debug", "text/plain"),
        (["log-level", "debug", "--seconds", "60"], "POST /debug/log-level?seconds=60&level=debug", "text/plain"),
        (["drain"], "POST /drain", "text/plain"),
    ],
)
def test_admin_asks_the_listener(
    answering: Callable[..., Answering],
    capfdbinary: pytest.CaptureFixture[bytes],
    arguments: list[str],
    line: str,
    accept: str,
) -> None:
    server = answering(page("200 OK", b"answer \xff"))
    assert cli.main(["admin", *arguments], {"PKG_ADMIN": f"127.0.0.1:{server.port}", "PORT": "nonsense"}) == 0
    head = server.requests[0].decode().split("\r\n")
    assert head[0] == f"{line} HTTP/1.1"
    assert f"Accept: {accept}" in head
    assert not any(field.startswith("Authorization") for field in head)
    assert capfdbinary.readouterr() == (b"answer \\xff\n", b"")  # a terminal may take such bytes for controls


def test_admin_sends_its_token(answering: Callable[..., Answering], tmp_path: Path) -> None:
    server = answering(page("200 OK", b""))
    address = f"0.0.0.0:{server.port}"
    token = tmp_path / "token"
    token.write_text("from-a-file\n")
    assert cli.main(["admin", "threads"], {"PKG_ADMIN": address, "PKG_ADMIN_TOKEN": "from-the-environment"}) == 0
    assert cli.main(["admin", "threads", "--admin", address, "--admin-token-file", str(token)], {}) == 0
    for request, secret in zip(server.requests, ("from-the-environment", "from-a-file"), strict=True):
        assert f"Authorization: Bearer {secret}\r\n".encode() in request


@pytest.mark.parametrize(
    ("answer", "line"),
    [
        (page("401 Unauthorized", b"wrong token\n"), "the admin listener responded with 401: wrong token"),
        (
            page("409 Conflict", b"a profile is running\nmore"),
            "the admin listener responded with 409: a profile is running",
        ),
        (page("303 See Other", b""), "the admin listener responded with 303: "),
        (b"nonsense\r\n\r\n", "no response from the admin listener at 127.0.0.1 port PORT: nonsense"),
        (b"", "no response from the admin listener at 127.0.0.1 port PORT: Remote end closed connection"),
    ],
)
def test_admin_refused(
    answering: Callable[..., Answering], capsys: pytest.CaptureFixture[str], answer: bytes, line: str
) -> None:
    server = answering(answer)
    assert cli.main(["admin", "threads"], {"PKG_ADMIN": f"127.0.0.1:{server.port}"}) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("pkg: " + line.replace("PORT", str(server.port)))
    assert captured.err.count("\n") == 1


def test_admin_not_reachable(capsys: pytest.CaptureFixture[str]) -> None:
    port = free_port()
    assert cli.main(["admin", "drain"], {"PKG_ADMIN": f"127.0.0.1:{port}"}) == 1
    assert capsys.readouterr().err == (
        f"pkg: no response from the admin listener at 127.0.0.1 port {port}: [Errno 111] Connection refused\n"
    )
    assert cli.main(["admin", "drain"], {"PKG_ADMIN": "off"}) == 1
    assert capsys.readouterr().err == "pkg: the admin listener is off (PKG_ADMIN)\n"


@pytest.mark.parametrize(
    ("arguments", "environ"),
    [
        ([], {}),
        (["nonsense"], {}),
        (["threads", "--nonsense"], {}),
        (["log-level"], {}),
        (["log-level", "loud"], {}),
        (["threads", "--timeout", "x"], {}),
        (["threads", "--timeout", "0"], {}),
        (["threads", "--timeout", "-1"], {}),
        (["threads", "--timeout", "nan"], {}),
        (["threads", "--timeout", "1e300"], {}),
        (["profile", "--seconds", "nan"], {}),
        (["threads"], {"PKG_ADMIN": "nonsense"}),
        (["threads", "--admin", "0.0.0.0:1"], {}),
    ],
)
def test_admin_wrong_usage(arguments: list[str], environ: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["admin", *arguments], environ) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.startswith("pkg: ") and captured.err.count("\n") == 1


def test_admin_of_a_process_into_a_broken_pipe(answering: Callable[..., Answering]) -> None:
    server = answering(page("200 OK", b"x" * 1_000_000))
    command = f'"{sys.executable}" -m pkg admin threads --admin 127.0.0.1:{server.port} | head -c 1'
    result = subprocess.run(["sh", "-c", command], cwd=ROOT, capture_output=True, timeout=60)
    assert (result.stdout, result.stderr) == (b"x", b"")


@pytest.mark.parametrize("arguments", ["admin threads --admin 127.0.0.1:PORT", "config", "config --json"])
@pytest.mark.parametrize(
    ("stdout", "line"),
    [
        (">&-", b"cannot write to stdout: it is closed"),
        (">/dev/full", b"cannot write to stdout: No space left on device"),
    ],
)
def test_answers_that_cannot_be_written(
    answering: Callable[..., Answering], arguments: str, stdout: str, line: bytes
) -> None:
    server = answering(page("200 OK", b"x"))
    command = f'"{sys.executable}" -m pkg {arguments.replace("PORT", str(server.port))} {stdout}'
    result = subprocess.run(["sh", "-c", command], cwd=ROOT, stderr=subprocess.PIPE, timeout=60)
    assert (result.returncode, result.stderr) == (1, b"pkg: %s\n" % line)


def test_config_asks_libpq_about_the_url(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["config"], {"DATABASE_URL": "postgresql://u:p4ss@h/shop?schema=public"}) == 2
    printed = capsys.readouterr()
    assert "DATABASE_URL: libpq has no parameter 'schema'" in printed.err
    assert "p4ss" not in printed.out + printed.err
    assert cli.main(["config"], {"DATABASE_URL": "postgresql://u:p4ss@h/shop?schema=public", "PKG_POOL": "off"}) == 0
