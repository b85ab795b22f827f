"""Runs a real PgBouncer in front of a server, in transaction mode."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

from psycopg.conninfo import conninfo_to_dict

from tests.support.client import wait_for
from tests.support.faults.postgres import Postgres
from tests.support.load import is_reachable
from tests.support.ports import free_port

__all__ = ["PGBOUNCER", "bouncing"]

PGBOUNCER = shutil.which("pgbouncer", path=os.environ.get("PATH", "") + ":/usr/sbin")


@contextlib.contextmanager
def bouncing(server: Postgres, sessions: int, *, tls: bool = False) -> Iterator[str]:
    """The URL of a PgBouncer with this number of sessions on the server, for all clients together.

    tls: clients may use it, with a certificate that nobody has signed; the server's build may have none.
    """
    assert PGBOUNCER is not None
    port = free_port()
    options = conninfo_to_dict(server.url)
    database = f"host=127.0.0.1 port={server.port} user={options['user']} password={options['password']}"
    with tempfile.TemporaryDirectory(prefix="pgbouncer-") as name:
        folder = Path(name)
        config = folder / "config"
        config.write_text(
            f"[databases]\n{options['dbname']} = {database}\n"
            f"[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\nunix_socket_dir =\nauth_type = any\n"
            f"pool_mode = transaction\ndefault_pool_size = {sessions}\nserver_login_retry = 1\n"
        )
        if tls:
            key, certificate = folder / "key", folder / "certificate"
            request = ["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"]
            request += ["-keyout", str(key), "-out", str(certificate)]
            subprocess.run(["openssl", *request], check=True, capture_output=True)
            key.chmod(0o644)  # a key for tests, and PgBouncer runs as another user
            with open(config, "a") as more:
                more.write(f"client_tls_sslmode = allow\nclient_tls_key_file = {key}\n")
                more.write(f"client_tls_cert_file = {certificate}\n")
        folder.chmod(0o755)
        command = [PGBOUNCER, *(["-u", "nobody"] if os.geteuid() == 0 else []), str(config)]
        with open(folder / "log", "wb") as log:
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        try:
            wait_for(lambda: is_reachable(("127.0.0.1", port)), 15, "PgBouncer")
            yield f"postgresql://{options['user']}:{options['password']}@127.0.0.1:{port}/{options['dbname']}"
        finally:
            process.kill()
            process.wait()
