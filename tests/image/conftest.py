"""The image, built once a session from the checkout, and a PostgreSQL that speaks TLS."""

from __future__ import annotations

import importlib
import os
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator
from glob import glob
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.image.engine import Engine, NoEngine
from tests.support.faults.postgres import NoServer, Postgres

BUILD = 900  # seconds that a test may take which happens to build an image first


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = os.path.dirname(__file__)
    for item in items:
        if str(item.path).startswith(here + os.sep) and "engine" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.timeout(BUILD))
            item.add_marker(pytest.mark.slow)


def unavailable(reason: str) -> None:
    """On a person's machine a reason to skip; in continuous integration a failure."""
    if os.environ.get("CI") == "true":
        pytest.fail(reason, pytrace=False)
    pytest.skip(reason, allow_module_level=True)


def needed(module: str) -> Any:
    """A module that only these tests import."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        unavailable(f"{error}: pip install -e '.[test]'")


@pytest.fixture(scope="session")
def engine() -> Iterator[Engine]:
    try:
        found = Engine()
    except NoEngine as error:
        unavailable(str(error))
        raise
    if found.name == "podman" and os.geteuid() != 0:
        unavailable("podman: the image tests run as root, or on Docker; deploy/image/build.sh builds as any user")
    with found:
        yield found


@pytest.fixture(scope="session")
def image(engine: Engine) -> str:
    try:
        return engine.build("runtime")
    except AssertionError as error:
        if "stand-in bases" in str(error):  # cannot be pulled, and cannot be made: the last line says what is missing
            unavailable(str(error).strip().splitlines()[-1])
        raise


@pytest.fixture(scope="session")
def debug_image(engine: Engine, image: str) -> str:
    return engine.build("debug")


@pytest.fixture(scope="session")
def builder_image(engine: Engine, image: str) -> str:
    return engine.build("builder")


@pytest.fixture(scope="session")
def base_image(engine: Engine, image: str) -> str:
    labels = engine.inspect(image)["Config"]["Labels"]
    return str(labels["org.opencontainers.image.base.name"])


class File(NamedTuple):
    path: str
    mode: int
    uid: int
    kind: bytes
    content: bytes  # of a regular file; of a link its target


@pytest.fixture(scope="session")
def files(engine: Engine, image: str) -> dict[str, File]:
    return files_of(engine, image)


@pytest.fixture(scope="session")
def base_files(engine: Engine, base_image: str) -> dict[str, File]:
    return files_of(engine, base_image)


def files_of(engine: Engine, image: str) -> dict[str, File]:
    found = {}
    with engine.files(image) as archive:
        for member in archive:
            path = "/" + member.name.rstrip("/")
            if path.startswith(("/dev/", "/proc/", "/sys/", "/run/")) or path in _ENGINE_OWN:
                continue
            found[path] = File(path, member.mode, member.uid, member.type, _content(archive, member))
    return found


# Put into every container by the engine.
_ENGINE_OWN = {"/.dockerenv", "/etc/hosts", "/etc/hostname", "/etc/resolv.conf", "/etc/mtab", "/run", "/dev"}


def _content(archive: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    if member.isreg():
        data = archive.extractfile(member)
        assert data is not None
        return data.read()
    return member.linkname.encode()


@pytest.fixture(scope="session")
def certificates() -> Iterator[Path]:
    """A folder with ca.pem, other-ca.pem, and server.pem with server.key for 127.0.0.1, signed by the former."""
    # Not one of pytest's: the container's user and the server's must get in, and whichever pytest is started next
    # closes those to all but its own.
    with tempfile.TemporaryDirectory(prefix="certificates-") as name:
        folder = Path(name)
        make_certificates(folder)
        for path in folder.iterdir():
            path.chmod(0o644)
        folder.chmod(0o755)
        yield folder


def make_certificates(folder: Path) -> None:
    def openssl(*arguments: str) -> None:
        done = subprocess.run(["openssl", *arguments], cwd=folder, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr

    new = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2")
    for name in ("ca", "other-ca"):
        openssl("req", "-x509", *new, "-keyout", f"{name}.key", "-out", f"{name}.pem", "-subj", f"/CN={name}")
    openssl("req", *new[:-2], "-keyout", "server.key", "-out", "server.csr", "-subj", "/CN=127.0.0.1")
    (folder / "names").write_text("subjectAltName=IP:127.0.0.1\n")
    openssl(
        "x509", "-req", "-in", "server.csr", "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial",
        "-days", "2", "-extfile", "names", "-out", "server.pem",
    )  # fmt: skip


@pytest.fixture(scope="session")
def postgres(certificates: Path) -> Iterator[Postgres]:
    """With TLS.  Debian's server is taken before a wheel's, which may be built without it."""
    system = sorted(glob("/usr/lib/postgresql/*/bin"))
    former = os.environ.get("PG_BIN")
    if former is None and system:
        os.environ["PG_BIN"] = system[-1]
    try:
        server = Postgres()
    except NoServer as error:
        unavailable(str(error))
        raise
    finally:
        if former is None:
            os.environ.pop("PG_BIN", None)
    key = server.folder / "server.key"  # the server wants a key that is its own and closed to others
    shutil.copy(certificates / "server.key", key)
    os.chown(key, server.uid, server.gid)
    key.chmod(0o600)
    server.settings |= {"ssl": "on", "ssl_cert_file": str(certificates / "server.pem"), "ssl_key_file": str(key)}
    with server:
        yield server
