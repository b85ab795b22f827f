"""The addresses to listen on: what can be written, what each fault says, and which setting wins."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from pkg.errors import ConfigurationError
from pkg.settings.declared import load
from pkg.settings.listen import Endpoint, parse_endpoints

ROOT = Path(__file__).parents[2]
EXAMPLES = "0.0.0.0:8080, [::]:8080, :8080, unix:/run/app.sock, fd:3 or systemd"
LONGEST = "/" + "x" * 106  # a path of 107 bytes


def faults(environ: dict[str, str], flags: dict[str, str] | None = None) -> tuple[str, ...]:
    with pytest.raises(ConfigurationError) as caught:
        load(environ, flags)
    return caught.value.faults


def tcp(host: str, port: int) -> Endpoint:
    return Endpoint("tcp", host=host, port=port)


# --- one text


@pytest.mark.parametrize(
    ("text", "wanted", "normal"),
    [
        ("", (), ""),
        ("  ", (), ""),
        ("0.0.0.0:8080", (tcp("0.0.0.0", 8080),), "0.0.0.0:8080"),
        (":8080", (tcp("0.0.0.0", 8080),), "0.0.0.0:8080"),
        ("[::]:8080", (tcp("::", 8080),), "[::]:8080"),
        ("[0:0::0]:8080", (tcp("::", 8080),), "[::]:8080"),
        ("[FE80::1%eth0]:80", (tcp("fe80::1%eth0", 80),), "[fe80::1%eth0]:80"),
        ("LocalHost:0", (tcp("localhost", 0),), "localhost:0"),
        ("my_host.example:65535", (tcp("my_host.example", 65535),), "my_host.example:65535"),
        ("unix:/run/app.sock", (Endpoint("unix", path="/run/app.sock"),), "unix:/run/app.sock"),
        ("unix:app.sock", (Endpoint("unix", path="app.sock"),), "unix:app.sock"),
        ("unix:/run/a b:c", (Endpoint("unix", path="/run/a b:c"),), "unix:/run/a b:c"),
        ("unix:/run/a?mode=660", (Endpoint("unix", path="/run/a", mode=0o660),), "unix:/run/a?mode=660"),
        ("unix:/run/a?mode=0660", (Endpoint("unix", path="/run/a", mode=0o660),), "unix:/run/a?mode=660"),
        ("unix:/run/a?mode=0", (Endpoint("unix", path="/run/a", mode=0),), "unix:/run/a?mode=0"),
        ("unix:/run/a?mode=777", (Endpoint("unix", path="/run/a", mode=0o777),), "unix:/run/a?mode=777"),
        (f"unix:{LONGEST}", (Endpoint("unix", path=LONGEST),), f"unix:{LONGEST}"),
        ("fd:3", (Endpoint("fd", fd=3),), "fd:3"),
        ("fd:1023", (Endpoint("fd", fd=1023),), "fd:1023"),
        ("systemd", (Endpoint("systemd"),), "systemd"),
        (
            " :80 , unix:a ,fd:3,systemd",
            (tcp("0.0.0.0", 80), Endpoint("unix", path="a"), Endpoint("fd", fd=3), Endpoint("systemd")),
            "0.0.0.0:80,unix:a,fd:3,systemd",
        ),
        (":0,:0", (tcp("0.0.0.0", 0),) * 2, "0.0.0.0:0,0.0.0.0:0"),
        ("127.0.0.1:1,127.0.0.2:1", (tcp("127.0.0.1", 1), tcp("127.0.0.2", 1)), "127.0.0.1:1,127.0.0.2:1"),
        ("0.0.0.0:1,[::1]:1", (tcp("0.0.0.0", 1), tcp("::1", 1)), "0.0.0.0:1,[::1]:1"),
    ],
)
def test_good(text: str, wanted: tuple[Endpoint, ...], normal: str) -> None:
    assert parse_endpoints(text) == wanted
    settings = load({"PKG_LISTEN": text})
    assert settings.listen == normal
    assert settings.endpoints == (wanted or (tcp("0.0.0.0", 8080),))
    assert parse_endpoints(normal) == wanted  # what is shown can be typed
    for endpoint in settings.endpoints:
        assert (endpoint.kind == "tcp") == bool(endpoint.host)
        assert (endpoint.kind == "unix") == bool(endpoint.path)
        assert (endpoint.kind == "fd") == (endpoint.fd > 0)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("8080", f"is not an address such as {EXAMPLES}"),
        ("localhost", f"is not an address such as {EXAMPLES}"),
        ("::1:8080", f"is not an address such as {EXAMPLES}"),
        ("*:8080", f"is not an address such as {EXAMPLES}"),
        ("http://x:80", f"is not an address such as {EXAMPLES}"),
        (":65536", f"is not an address such as {EXAMPLES}"),
        (":-1", f"is not an address such as {EXAMPLES}"),
        (":", f"is not an address such as {EXAMPLES}"),
        ("\u0661.0.0.1:80", f"is not an address such as {EXAMPLES}"),
        ("h:\u0661", f"is not an address such as {EXAMPLES}"),
        ("SYSTEMD", f"is not an address such as {EXAMPLES}"),
        ("[localhost]:80", "has no IPv6 address between the brackets, as in [::]:8080"),
        ("[::1%]:80", "has no IPv6 address between the brackets, as in [::]:8080"),
        ("[::1%a/b]:80", "has no IPv6 address between the brackets, as in [::]:8080"),
        ("[127.0.0.1]:80", "has no IPv6 address between the brackets, as in [::]:8080"),
        ("unix:", "has no file name, as in unix:/run/app.sock"),
        ("unix:?mode=660", "has no file name, as in unix:/run/app.sock"),
        ("unix:/run/", "has no file name, as in unix:/run/app.sock"),
        ("unix:///run/app.sock", "has two slashes after unix: write one, as in unix:/run/app.sock"),
        (
            "unix:@app",
            "is an abstract socket, which no file permissions protect: use a path, as in unix:/run/app.sock",
        ),
        ("unix:/run/a\nb", "contains control characters"),
        (f"unix:{LONGEST}x", "has a path of more than 107 bytes, which no Unix socket can have"),
        ("unix:/" + "\u00e9" * 54, "has a path of more than 107 bytes, which no Unix socket can have"),
        *(
            (
                f"unix:/run/a?{query}",
                "has something else after the question mark than mode=0 to mode=777, as in ?mode=660",
            )
            for query in (
                "",
                "mode",
                "mode=",
                "mode=668",
                "mode=1777",
                "mode=00660",
                "mode=-1",
                "user=a",
                "mode=\u0661",
            )
        ),
        *((f"fd:{n}", "is not the number of a descriptor from 3 to 1023, as in fd:3") for n in ("", "2", "1024", "x")),
        ("fd://3", "is not the number of a descriptor from 3 to 1023, as in fd:3"),
        (":80,", f"(address 2) is not an address such as {EXAMPLES}"),
        (":80,,:81", f"(address 2) is not an address such as {EXAMPLES}"),
        (":80,fd:0", "(address 2) is not the number of a descriptor from 3 to 1023, as in fd:3"),
        (":80,0.0.0.0:80", "(address 2) is the same as address 1"),
        ("unix:a,:80,unix:a", "(address 3) is the same as address 1"),
        ("unix:a?mode=660,unix:a", "(address 2) overlaps with address 1"),
        ("fd:3,fd:3", "(address 2) is the same as address 1"),
        ("systemd,systemd", "(address 2) is the same as address 1"),
        (":80,127.0.0.1:80", "(address 2) overlaps with address 1"),
        ("127.0.0.1:80,[::]:80", "(address 2) overlaps with address 1"),
        ("[::]:80,[::1]:80", "(address 2) overlaps with address 1"),
        (",".join(f":{port}" for port in range(1, 18)), "has more than 16 addresses"),
    ],
)
def test_bad(text: str, reason: str) -> None:
    (fault,) = faults({"PKG_LISTEN": text})
    assert fault == f"PKG_LISTEN: {text!a} {reason}"


def test_at_most_16() -> None:
    assert len(load({"PKG_LISTEN": ",".join(f":{port}" for port in range(1, 17))}).endpoints) == 16


def test_a_url_by_mistake_loses_its_password() -> None:
    for name in ("PKG_LISTEN", "PKG_HEALTH"):
        for text in ("postgres://u:hunter2@h/db", "unix:postgres://u:hunter2@h/db/"):
            (fault,) = faults({name: text})
            assert "hunter2" not in fault


def test_the_module_is_light() -> None:
    """The command `probe` imports it, every few seconds in every container."""
    code = "import sys, pkg.settings; before = set(sys.modules); import pkg.settings.listen as module; "
    code += "module.parse_endpoints('[::1]:80,unix:a'); print(*(set(sys.modules) - before))"
    result = subprocess.run([sys.executable, "-S", "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert result.stderr == ""
    assert set(result.stdout.split()) <= {"pkg.settings.listen", "_socket"}


# --- the listener for the health pages


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("", None),
        (":8081", tcp("0.0.0.0", 8081)),
        ("[::1]:8081", tcp("::1", 8081)),
        ("unix:/run/health.sock?mode=600", Endpoint("unix", path="/run/health.sock", mode=0o600)),
    ],
)
def test_health(text: str, wanted: Endpoint | None) -> None:
    settings = load({"PKG_HEALTH": text})
    assert settings.health_endpoint == wanted
    assert settings.health == (str(wanted) if wanted else "")


@pytest.mark.parametrize(
    ("environ", "fault"),
    [
        ({"PKG_HEALTH": "fd:3"}, "PKG_HEALTH: 'fd:3' is neither host:port, :port nor unix:PATH"),
        ({"PKG_HEALTH": "systemd"}, "PKG_HEALTH: 'systemd' is neither host:port, :port nor unix:PATH"),
        ({"PKG_HEALTH": "8081"}, f"PKG_HEALTH: '8081' is not an address such as {EXAMPLES}"),
        ({"PKG_HEALTH": ":1,:2"}, f"PKG_HEALTH: ':1,:2' is not an address such as {EXAMPLES}"),
        ({"PKG_HEALTH": ":8080"}, "PKG_HEALTH: 0.0.0.0:8080 is an address of the service itself"),
        (
            {"PKG_HEALTH": "127.0.0.1:80", "PKG_LISTEN": "unix:a,:80"},
            "PKG_HEALTH: 127.0.0.1:80 is an address of the service itself",
        ),
        (
            {"PKG_HEALTH": "unix:a", "PKG_LISTEN": "unix:a?mode=660"},
            "PKG_HEALTH: unix:a is an address of the service itself",
        ),
        (
            {"PKG_HEALTH_ON_MAIN": "false"},
            "PKG_HEALTH_ON_MAIN: false requires health, the listener for the health pages",
        ),
        # Nothing about what follows from a setting that is reported already.
        ({"PKG_HEALTH_ON_MAIN": "false", "PKG_HEALTH": "fd:3"}, faults({"PKG_HEALTH": "fd:3"})[0]),
        (
            {"PKG_HEALTH": ":8080", "PKG_LISTEN": "8080"},
            f"PKG_LISTEN: '8080' is not an address such as {EXAMPLES}",
        ),
        (
            {"PKG_ADMIN": "127.0.0.1:81", "PKG_LISTEN": "unix:a,:81"},
            "PKG_ADMIN: 127.0.0.1:81 uses the port of the service itself",
        ),
        (
            {"PKG_ADMIN": "127.0.0.1:81", "PKG_HEALTH": ":81"},
            "PKG_ADMIN: 127.0.0.1:81 uses the port of the health listener",
        ),
    ],
)
def test_addresses_that_do_not_go_together(environ: dict[str, str], fault: str) -> None:
    assert faults(environ) == (fault,)


def test_addresses_that_go_together() -> None:
    settings = load({"PKG_LISTEN": ":0", "PKG_HEALTH": ":0", "PKG_ADMIN": "127.0.0.1:0", "PKG_HEALTH_ON_MAIN": "no"})
    assert (settings.endpoints, settings.health_endpoint) == ((tcp("0.0.0.0", 0),), tcp("0.0.0.0", 0))
    assert load({"PKG_LISTEN": "unix:a", "PKG_HEALTH": ":8080", "PKG_ADMIN": "127.0.0.1:9901"}).notes == ()


# --- which setting wins


@pytest.mark.parametrize(
    ("environ", "flags", "endpoints", "notes"),
    [
        ({}, {}, "0.0.0.0:8080", ()),
        ({"HOST": "::1", "PORT": "80"}, {}, "[::1]:80", ()),
        ({"PKG_LISTEN": "unix:a"}, {}, "unix:a", ()),
        (
            {"PKG_LISTEN": "unix:a", "PORT": "80"},
            {},
            "unix:a",
            ("ignoring PORT in favor of PKG_LISTEN",),
        ),
        (
            {"PKG_LISTEN": "unix:a", "HOST": "::", "PORT": "80"},
            {},
            "unix:a",
            ("ignoring HOST and PORT in favor of PKG_LISTEN",),
        ),
        # What is not used is not judged either: an orchestrator may set PORT to anything.
        (
            {"PKG_LISTEN": "unix:a", "PORT": "tcp://10.0.0.1:80"},
            {},
            "unix:a",
            ("ignoring PORT in favor of PKG_LISTEN",),
        ),
        ({"PORT": "80"}, {"listen": "fd:3"}, "fd:3", ("ignoring PORT in favor of --listen",)),
        ({"PKG_LISTEN": "unix:a"}, {"listen": "fd:3"}, "fd:3", ()),
        (
            {"PKG_LISTEN": "unix:a"},
            {"port": "81"},
            "0.0.0.0:81",
            ("ignoring PKG_LISTEN in favor of --port",),
        ),
        (
            {"PKG_LISTEN": "unix:a", "PORT": "80"},
            {"host": "127.0.0.1"},
            "127.0.0.1:80",
            ("ignoring PKG_LISTEN in favor of --host",),
        ),
        (
            {"PKG_LISTEN": "unix:a"},
            {"host": "127.0.0.1", "port": "81"},
            "127.0.0.1:81",
            ("ignoring PKG_LISTEN in favor of --host and --port",),
        ),
        ({"PKG_LISTEN": " ", "PORT": "80"}, {}, "0.0.0.0:80", ()),
        ({"PKG_LISTEN": "unix:a", "PORT": "80"}, {"listen": ""}, "0.0.0.0:80", ()),
    ],
)
def test_what_wins(environ: dict[str, str], flags: dict[str, str], endpoints: str, notes: tuple[str, ...]) -> None:
    settings = load(environ, flags)
    assert ",".join(map(str, settings.endpoints)) == endpoints
    assert settings.notes == notes
    assert settings.warnings == ()


def test_a_setting_that_is_not_used_shows_its_default() -> None:
    settings = load({"PKG_LISTEN": "unix:a", "PORT": "80"})
    assert (settings.port, settings.origin("port"), settings.origin("listen")) == (8080, "default", "environment")
    settings = load({"PKG_LISTEN": "unix:a"}, {"port": "80"})
    assert (settings.listen, settings.origin("listen"), settings.origin("port")) == ("", "default", "flag")


@pytest.mark.parametrize(
    ("flags", "named"),
    [({"port": "80"}, "--port"), ({"host": "::"}, "--host"), ({"host": "::", "port": "1"}, "--host or --port")],
)
def test_flags_that_contradict_each_other(flags: dict[str, str], named: str) -> None:
    wanted = f"--listen: cannot be combined with {named}, which it replaces"
    assert faults({}, {"listen": "unix:a", **flags}) == (wanted,)


def run(*arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "pkg", *arguments],
        cwd=ROOT,
        env={"PATH": "/usr/bin:/bin"} | environ,
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_config_shows_the_addresses_and_what_is_not_used() -> None:
    result = run("config", PKG_LISTEN="unix:a, :80", PORT="81")
    assert result.returncode == 0
    rows = {line.split()[0]: line.split()[1:4] for line in result.stdout.splitlines()}
    assert rows["listen"] == ["unix:a,0.0.0.0:80", "environment", "PKG_LISTEN"]
    assert result.stderr == "pkg: note: ignoring PORT in favor of PKG_LISTEN\n"


def test_the_flag_may_be_repeated() -> None:
    result = run("config", "--listen", ":80", "--listen=unix:a,fd:3", "--health", ":81")
    assert (result.returncode, result.stderr) == (0, "")
    rows = {line.split()[0]: line.split()[1:4] for line in result.stdout.splitlines()}
    assert rows["listen"] == ["0.0.0.0:80,unix:a,fd:3", "flag", "--listen"]
    assert rows["health"] == ["0.0.0.0:81", "flag", "--health"]


def test_the_flags_exclude_each_other() -> None:
    for command in ("serve", "config"):
        result = run(command, "--listen", ":80", "--port", "81")
        assert (result.returncode, result.stdout) == (2, "")
        assert result.stderr == "pkg: --listen: cannot be combined with --port, which it replaces\n"
