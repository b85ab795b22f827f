"""The image as it runs in production: nothing writable, no rights, 64 MB; probes, database, TLS, signals, logs."""

from __future__ import annotations

import http.client
import json
import socket
import statistics
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.image.engine import Container, Engine, wait_for
from tests.support.faults.postgres import Postgres
from tests.support.ports import free_port

APPLICATION = """
import time
import pkg


def app(environ, start_response):
    name, _, value = environ["PATH_INFO"].strip("/").partition("/")
    if name == "sleep":
        time.sleep(float(value))
        body = b"slept"
    elif name == "query":
        with pkg.connection() as conn:
            body = str(conn.execute(f"select sum(g) from generate_series(1, {int(value)}) g").fetchone()[0]).encode()
    elif name == "echo":
        body = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
    elif name == "dead":
        pkg.fail_liveness("told so")
        body = b"dead"
    else:
        body = b"hello"
    start_response("200 OK", [("Content-Length", str(len(body)))])
    return [body]
"""


# Forks a child that leaves an orphan behind and ends with 7; there is no shell to do that.
ORPHANS = """
import os, time


def app(environ, start_response):
    pid = os.fork()
    if pid == 0:
        if os.fork() == 0:
            time.sleep(0.1)
        os._exit(7)
    body = str(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])).encode()
    start_response("200 OK", [("Content-Length", str(len(body)))])
    return [body]
"""


@pytest.fixture(scope="module")
def application() -> Iterator[tuple[str, ...]]:
    """Flags that put it where a user's own application goes."""
    with tempfile.TemporaryDirectory(prefix="app-") as folder:
        Path(folder, "app.py").write_text(APPLICATION)
        Path(folder).chmod(0o755)
        Path(folder, "app.py").chmod(0o644)
        yield (f"--volume={folder}:/app:ro,z", "--env=PKG_APP=app:app")


def records(container: Container) -> list[dict[str, Any]]:
    """The log, each line of which is a JSON object."""
    return [json.loads(line) for line in container.log().splitlines()]


# ------------------------------------------------------------------------------------------------ probes, database


def test_it_is_healthy_and_ready_without_an_application(engine: Engine, image: str) -> None:
    with engine.container(image) as container:
        assert container.wait_until("/healthz", 200).body == "ok"
        assert container.wait_until("/readyz", 200).body == "ok"
        assert container.get("/").body == "ok"


def test_it_is_ready_while_the_database_answers(engine: Engine, image: str, postgres: Postgres) -> None:
    settings = {"DATABASE_URL": postgres.url, "PKG_DATABASE_CHECK_INTERVAL": "500ms"}
    with engine.container(image, environment=settings) as container:
        container.wait_until("/readyz/database", 200)
        container.wait_until("/readyz", 200)
        postgres.stop()
        try:
            assert container.wait_until("/readyz", 503).body.startswith("database")
            assert container.get("/healthz").status == 200
        finally:
            postgres.start()
        container.wait_until("/readyz", 200)


def test_it_checks_the_server_s_certificate(engine: Engine, image: str, postgres: Postgres, certificates: Path) -> None:
    url = f"{postgres.url}?sslmode=verify-full&sslrootcert=/certificates/ca.pem&application_name=verified"
    flags = (f"--volume={certificates}:/certificates:ro,z",)
    with engine.container(image, environment={"DATABASE_URL": url}, flags=flags) as container:
        container.wait_until("/readyz", 200)
        ours = "pg_stat_ssl join pg_stat_activity using (pid) where application_name = 'verified'"
        assert postgres.sql(f"select bool_and(ssl) from {ours}") is True


@pytest.mark.parametrize("roots", ["/certificates/other-ca.pem", "system"])
def test_a_server_that_nobody_vouches_for_is_refused(
    engine: Engine, image: str, postgres: Postgres, certificates: Path, roots: str
) -> None:
    url = f"{postgres.url}?sslmode=verify-full&sslrootcert={roots}"
    flags = (f"--volume={certificates}:/certificates:ro,z",)
    with engine.container(image, environment={"DATABASE_URL": url}, flags=flags) as container:
        container.wait_until("/readyz", 503)
        wait_for(lambda: "certificate verify failed" in container.log(), "the reason in the log")
        assert container.get("/readyz").status == 503
        assert container.get("/healthz").status == 200


def test_system_roots_can_be_replaced(engine: Engine, image: str, postgres: Postgres, certificates: Path) -> None:
    """SSL_CERT_FILE is what the base sets, for Python and libpq (sslrootcert=system) alike."""
    settings = {
        "DATABASE_URL": f"{postgres.url}?sslmode=verify-full&sslrootcert=system",
        "SSL_CERT_FILE": "/certificates/ca.pem",
    }
    flags = (f"--volume={certificates}:/certificates:ro,z",)
    with engine.container(image, environment=settings, flags=flags) as container:
        container.wait_until("/readyz", 200)


@pytest.mark.parametrize("user", ["1000680000:0", "65534:65534"])
def test_any_user_id_will_do(
    engine: Engine, image: str, postgres: Postgres, application: tuple[str, ...], user: str
) -> None:
    """OpenShift gives each namespace user ids of its own, which no passwd file knows."""
    flags = (*application, f"--user={user}")
    with engine.container(image, environment={"DATABASE_URL": postgres.url}, flags=flags) as container:
        container.wait_until("/readyz", 200)
        assert container.get("/query/3").body == "6"


def test_health_check_of_the_image(engine: Engine, image: str) -> None:
    flags = ("--health-interval=1s",) if engine.name == "docker" else ()

    def check() -> str:
        if engine.name == "podman":
            engine.run("healthcheck", "run", container.name, check=False)
        state = container.state()
        return str((state.get("Health") or state.get("Healthcheck") or {})["Status"])

    with engine.container(image, flags=flags, health_check=True) as container:
        wait_for(lambda: check() == "healthy", "healthy")
        tell = "import os; os.kill(int(open('/proc/1/task/1/children').read().split()[0]), {})"  # the service
        assert container.exec("/usr/bin/python3", "-c", tell.format(19)).returncode == 0  # SIGSTOP
        try:
            wait_for(lambda: check() == "unhealthy", "unhealthy", 60)
        finally:
            assert container.exec("/usr/bin/python3", "-c", tell.format(18)).returncode == 0  # SIGCONT
        wait_for(lambda: check() == "healthy", "healthy again")


def test_probe_inside_the_container(engine: Engine, image: str, application: tuple[str, ...]) -> None:
    with engine.container(image, flags=application) as container:
        container.wait_until("/readyz", 200)
        for arguments in ((), ("--ready",)):
            done = container.exec("/usr/bin/python3", "-m", "pkg", "probe", *arguments)
            assert (done.returncode, done.stdout) == (0, "ok\n")
        assert container.get("/dead").status == 200
        container.wait_until("/healthz", 503)
        assert container.exec("/usr/bin/python3", "-m", "pkg", "probe").returncode == 1


def test_the_tools_that_replace_a_shell(engine: Engine, image: str, application: tuple[str, ...]) -> None:
    settings = {"PKG_ADMIN": f"127.0.0.1:{free_port()}"}
    with engine.container(image, flags=application, environment=settings) as container:
        container.wait_until("/readyz", 200)
        said = {}
        for command in ("config", "admin status", "admin threads", "admin requests", "admin metrics"):
            done = container.exec("/usr/bin/python3", "-m", "pkg", *command.split())
            assert (done.returncode, done.stderr) == (0, ""), command
            said[command] = done.stdout
        assert "drain_delay" in said["config"]
        assert "service.py" in said["admin threads"]
        assert "# TYPE http_server_active_requests" in said["admin metrics"]
        assert container.exec("/usr/bin/python3", "-m", "pkg", "admin", "drain").returncode == 0
        assert container.wait() == 0


# ------------------------------------------------------------------------------------------------ the application


def test_an_application_that_is_mounted(
    engine: Engine, image: str, postgres: Postgres, application: tuple[str, ...]
) -> None:
    with engine.container(image, environment={"DATABASE_URL": postgres.url}, flags=application) as container:
        container.wait_until("/readyz", 200)
        assert container.get("/").body == "hello"
        assert container.get("/query/4").body == "10"


def test_an_application_that_is_not_there(engine: Engine, image: str) -> None:
    with engine.container(image, "nothing:app") as container:
        assert container.wait() == 3
        assert "no module named 'nothing'" in container.log()


def test_a_wrong_setting(engine: Engine, image: str) -> None:
    with engine.container(image, environment={"PKG_DRAIN_DELAY": "soon"}) as container:
        assert container.wait() == 2
        assert "drain_delay" in container.log().lower()


def test_nothing_that_runs_was_compiled_at_start(
    engine: Engine, image: str, postgres: Postgres, application: tuple[str, ...]
) -> None:
    """A module without byte code costs some milliseconds at every start, since the container can write none."""
    code = """
import os, sys, threading, time, urllib.request

def look():
    url = "http://127.0.0.1:" + os.environ["PORT"]
    while True:
        try:
            urllib.request.urlopen(url + "/readyz").read()
            break
        except OSError:
            time.sleep(0.02)
    urllib.request.urlopen(url + "/query/3").read()
    specs = [m.__spec__ for m in list(sys.modules.values()) if getattr(m, "__spec__", None) and m.__spec__.has_location]
    without = [s.name for s in specs if s.origin.endswith(".py") and not os.path.exists(s.cached)]
    print("WITHOUT", sorted(set(without) - {"app"}), len(specs), flush=True)

threading.Thread(target=look, daemon=True).start()
from pkg.cli.main import main
sys.exit(main([]))
"""
    flags = (*application, "--entrypoint=/usr/bin/python3")
    with engine.container(
        image, "-c", code, environment={"DATABASE_URL": postgres.url, "LOG_LEVEL": "error"}, flags=flags
    ) as container:
        line = wait_for(
            lambda: next((line for line in container.log().splitlines() if line.startswith("WITHOUT")), None),
            "the list",
        )
        # What this test's own client imports, the service does not.
        own = {"urllib.request", "urllib.error", "urllib.response", "tempfile", "shutil", "bz2", "lzma", "_compression"}
        names, count = line.removeprefix("WITHOUT ").rsplit(" ", 1)
        assert set(json.loads(names.replace("'", '"'))) - own == set()
        assert int(count) > 100


# ------------------------------------------------------------------------------------------------ signals and logs


def test_sigterm_as_process_1_drains(engine: Engine, image: str, application: tuple[str, ...]) -> None:
    settings = {"PKG_DRAIN_DELAY": "3s"}  # long enough for the requests below, however slow the machine
    with engine.container(image, environment=settings, flags=application) as container:
        container.wait_until("/readyz", 200)
        answers: list[Any] = []
        slow = threading.Thread(target=lambda: answers.append(container.get("/sleep/4", 30)))
        slow.start()
        busy = http.client.HTTPConnection("127.0.0.1", container.port, timeout=10)
        busy.request("GET", "/")
        first = busy.getresponse()
        assert (first.status, first.read()) == (200, b"hello")
        container.signal("TERM")
        assert container.wait_until("/readyz", 503).body.startswith("shutdown")
        assert container.get("/healthz").status == 200
        busy.request("GET", "/")  # still served, and told to go
        last = busy.getresponse()
        assert (last.status, last.read(), last.getheader("Connection")) == (200, b"hello", "close")
        busy.close()
        slow.join(30)
        assert container.wait() == 0
        assert [tuple(answer) for answer in answers] == [(200, "slept")]
        assert "0 aborted" in records(container)[-1]["message"]


def test_process_1_reaps_orphans_and_is_small(engine: Engine, image: str) -> None:
    """Children that the application starts and waits for are not its concern."""
    with tempfile.TemporaryDirectory(prefix="app-") as folder:
        Path(folder, "app.py").write_text(ORPHANS)
        Path(folder).chmod(0o755)
        Path(folder, "app.py").chmod(0o644)
        flags = (f"--volume={folder}:/app:ro,z", "--env=PKG_APP=app:app")
        with engine.container(image, flags=flags) as container:
            container.wait_until("/readyz", 200)
            for _ in range(10):
                assert container.get("/").body == "7"
            code = (
                "import pathlib\n"
                + "print(*[p.read_text().split(')')[1] for p in pathlib.Path('/proc').glob('[0-9]*/stat')])"
            )
            wait_for(lambda: " Z " not in container.exec("/usr/bin/python3", "-c", code).stdout, "every orphan reaped")
            code = "print(*[line for line in open('/proc/1/smaps_rollup') if line.startswith('Private_Dirty')])"
            private = container.exec("/usr/bin/python3", "-c", code).stdout.split()
            assert int(private[1]) < 1000, private


def test_stop_does_not_need_a_kill(engine: Engine, image: str) -> None:
    with engine.container(image) as container:
        container.wait_until("/readyz", 200)
        begin = time.monotonic()
        engine.run("stop", "--time=30", container.name)
        assert time.monotonic() - begin < 15
        state = container.state()
        assert (state["ExitCode"], state["OOMKilled"]) == (0, False)


def test_a_signal_during_the_application_s_import(engine: Engine, image: str) -> None:
    """As process 1 a signal without a handler would be ignored, and the container killed 30 s later."""
    with tempfile.TemporaryDirectory(prefix="app-") as folder:
        Path(folder, "slow_module.py").write_text("import time\ntime.sleep(60)\n")
        Path(folder).chmod(0o755)
        with engine.container(image, "slow_module:app", flags=(f"--volume={folder}:/app:ro,z",)) as container:
            assert container.wait_until("/healthz", 200).body == "ok"
            assert container.get("/readyz").status == 503
            container.signal("TERM")
            assert container.wait(timeout=40) == 0


def test_every_line_of_the_log_is_json(engine: Engine, image: str, application: tuple[str, ...]) -> None:
    with engine.container(image, flags=application, environment={"PKG_DRAIN_DELAY": "0"}) as container:
        container.wait_until("/readyz", 200)
        trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
        with socket.create_connection(("127.0.0.1", container.port), 10) as client:
            client.sendall(b"GET /a?b=c HTTP/1.1\r\nHost: x\r\ntraceparent: %s\r\n\r\n" % trace.encode())
            assert client.recv(100).startswith(b"HTTP/1.1 200")
            client.shutdown(socket.SHUT_WR)
        record = wait_for_record_of(container, "/a")
        container.signal("TERM")
        assert container.wait() == 0
        parsed = records(container)
        assert all({"timestamp", "severity", "message", "logger"} <= set(entry) for entry in parsed)
        assert record["http.request.method"] == "GET"
        assert record["http.response.status_code"] == 200
        assert not [entry for entry in parsed if "/readyz" in str(entry.get("url.path"))]


def wait_for_record_of(container: Container, path: str) -> dict[str, Any]:
    def found() -> dict[str, Any] | None:
        return next((record for record in records(container) if record.get("url.path") == path), None)

    record: dict[str, Any] = wait_for(found, f"a record of {path}")
    return record


# ------------------------------------------------------------------------------------------------ worker processes


def test_two_workers_fit_and_are_replaced(engine: Engine, image: str, application: tuple[str, ...]) -> None:
    """In 64 MB, without rights, and without a shell to look at it."""
    settings = {"WEB_CONCURRENCY": "2", "PKG_DRAIN_DELAY": "0", "PKG_ADMIN": "127.0.0.1:9901"}
    with engine.container(image, environment=settings, flags=application) as container:
        container.wait_until("/readyz", 200)
        for _ in range(100):
            assert container.get("/").body == "hello"

        def workers() -> list[dict[str, Any]]:
            done = container.exec("/usr/bin/python3", "-m", "pkg", "admin", "status", "--json")
            assert done.returncode == 0, done.stderr
            found: list[dict[str, Any]] = json.loads(done.stdout)["processes"]
            return [row for row in found if row["worker"]]  # without the template

        before = {worker["pid"] for worker in workers()}
        assert len(before) == 2
        kill = f"import os, signal; os.kill({min(before)}, signal.SIGKILL)"
        assert container.exec("/usr/bin/python3", "-c", kill).returncode == 0
        assert container.get("/").body == "hello"
        wait_for(lambda: {w["pid"] for w in workers() if w["is_ready"]} - before and len(workers()) == 2, "another")
        assert container.get("/healthz").status == 200
        print("\n", [(worker["private"] >> 10, worker["served"]) for worker in workers()])


# ------------------------------------------------------------------------------------------------ memory and time


def test_64_mb_are_enough_under_load(
    engine: Engine, image: str, postgres: Postgres, application: tuple[str, ...], record_property: pytest.RecordProperty
) -> None:
    """200 connections, bodies of 256 KiB both ways, queries, and HEALTHCHECK's process; over the limit means killed."""
    body = bytes(256 * 1024)
    faults: list[str] = []

    def client(number: int) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", container.port, timeout=60)
        try:
            for turn in range(10):
                path, sent = ("/echo", body) if (number + turn) % 4 == 0 else (f"/query/{turn}", None)
                connection.request("POST" if sent else "GET", path, sent)
                response = connection.getresponse()
                data = response.read()
                if response.status != 200 or (sent and data != sent):
                    faults.append(f"{path}: {response.status}, {len(data)} bytes")
        except OSError as error:
            faults.append(repr(error))
        finally:
            connection.close()

    settings = {"DATABASE_URL": postgres.url, "PKG_QUEUE_TIMEOUT": "60s", "PKG_POOL_TIMEOUT": "60s"}
    with engine.container(image, environment=settings, flags=application) as container:
        container.wait_until("/readyz", 200)
        clients = [threading.Thread(target=client, args=(number,)) for number in range(200)]
        for thread in clients:
            thread.start()
        probe = container.exec("/usr/bin/python3", "-m", "pkg", "probe")
        for thread in clients:
            thread.join()
        assert faults == []
        assert (probe.returncode, probe.stdout) == (0, "ok\n")
        code = "s = open('/proc/1/task/1/children').read().split()[0]; print(open(f'/proc/{s}/status').read())"
        status = container.exec("/usr/bin/python3", "-c", code).stdout  # the service, the child of process 1
        peak = int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM")))
        print(f"\npeak of resident memory: {peak / 1024:.1f} MB")
        record_property("peak KB", peak)
        state = container.state()
        assert (state["Running"], state["OOMKilled"]) == (True, False)
        assert container.get("/readyz").status == 200


def test_cold_start(engine: Engine, image: str, postgres: Postgres, record_property: pytest.RecordProperty) -> None:
    """From the command to the first answers.  The bounds are wide: other tests may share the machine."""
    alive, ready = [], []
    for _ in range(5):
        with engine.container(image, environment={"DATABASE_URL": postgres.url}) as container:
            while container.get("/healthz").status != 200:
                assert time.monotonic() - container.begun < 20
            alive.append(time.monotonic() - container.begun)
            while container.get("/readyz").status != 200:
                assert time.monotonic() - container.begun < 20, container.log()
            ready.append(time.monotonic() - container.begun)
    print(
        f"\ncold start: alive after {min(alive) * 1000:.0f} ms at best, {statistics.median(alive) * 1000:.0f} median;",
        end="",
    )
    print(f" ready with a pool after {min(ready) * 1000:.0f} ms at best, {statistics.median(ready) * 1000:.0f} median")
    record_property("alive ms", round(statistics.median(alive) * 1000))
    record_property("ready ms", round(statistics.median(ready) * 1000))
    assert min(alive) < 2.0
    assert min(ready) < 4.0
