"""Docker or podman, whichever works here, as the image tests need it.  It knows nothing about what is in the image."""

from __future__ import annotations

import contextlib
import functools
import gzip
import io
import json
import os
import secrets
import shutil
import subprocess
import tarfile
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from tests.support.ports import free_port

__all__ = ["ROOT", "Answer", "Container", "Engine", "Layer", "NoEngine", "wait_for"]

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).resolve().parent

# As `deploy/` runs it: nothing writable, no rights.
HARDENED = (
    "--read-only",
    "--cap-drop=ALL",
    "--security-opt=no-new-privileges",
    "--user=65532:65532",
    "--memory=64m",
    "--pids-limit=64",
)


class NoEngine(RuntimeError):
    """Containers cannot be run here; the text is one line that says what to do."""


class Answer(NamedTuple):
    status: int
    body: str


class Layer(NamedTuple):
    size: int  # bytes of tar
    packed_size: int  # bytes of gzip -6, as it is pulled


def wait_for(condition: Callable[[], Any], what: str, timeout: float = 60.0) -> Any:
    """The condition's first true value.  AssertionError: there was none in time."""
    end = time.monotonic() + timeout
    while True:
        value = condition()
        if value:
            return value
        assert time.monotonic() < end, f"not within {timeout:g} s: {what}"
        time.sleep(0.02)


class Engine:
    """Nothing that it makes is seen by another run, and nothing of it is left when the `with` block ends.

    On podman it has a storage of its own; IMAGE_STORE names a folder that keeps it, so that the next run finds bases
    and layers there (30 s instead of 100).  On Docker the daemon's is shared, so images have names of this run's own.
    NoEngine: neither docker nor podman works here.
    """

    def __init__(self) -> None:
        self.environment = {**os.environ, "DOCKER_BUILDKIT": "1"}
        named = os.environ.get("ENGINE")
        for name in [named] if named else ["docker", "podman"]:
            # A docker command may be there without its daemon, or be podman under Docker's name.
            if shutil.which(name) and self._works(name):
                self.name = name
                break
        else:
            raise NoEngine(
                "no Docker daemon and no podman: the image is not tested"
                " (on Debian: apt-get install podman runc skopeo mmdebstrap)"
            )
        self._names = f"localhost/pkg-test-{secrets.token_hex(4)}"
        self._tagged: set[str] = set()
        self.provenance: dict[str, str] = {}  # of each image that was built

    def __enter__(self) -> Engine:
        if self.name == "podman":
            kept = os.environ.get("IMAGE_STORE")
            # Not /tmp, which may be memory.  Layers belong to users of their own: only root can remove them.
            self._store = Path(kept).resolve() if kept else Path(tempfile.mkdtemp(prefix="pkg-test-", dir="/var/tmp"))
            self._store.mkdir(exist_ok=True)
            storage, containers = self._store / "storage.conf", self._store / "containers.conf"
            storage.write_text(
                f'[storage]\ndriver = "overlay"\nrunroot = "{self._store}/run"\ngraphroot = "{self._store}/graph"\n'
            )
            # Whatever counts locks and runs must be of this storage too.
            bare = not os.path.isdir("/run/systemd/system")  # the same as in deploy/image/build.sh
            settings = (HERE / "containers.conf").read_text() if bare else "[engine]\n"
            containers.write_text(f'{settings}lock_type = "file"\ntmp_dir = "{self._store}/tmp"\n')
            self.environment |= {"CONTAINERS_STORAGE_CONF": str(storage), "CONTAINERS_CONF": str(containers)}
        return self

    def __exit__(self, *exception: object) -> None:
        for image in sorted(self._tagged):
            self.run("rmi", "--force", image, check=False)
        if self.name == "podman" and not os.environ.get("IMAGE_STORE"):
            self.run("rm", "--all", "--force", "--time=0", check=False)
            mounts = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
            for path in reversed([path for path in mounts if path.startswith(f"{self._store}/")]):
                subprocess.run(["umount", path], check=False)
            shutil.rmtree(self._store)

    @staticmethod
    def _works(name: str) -> bool:
        try:
            done = subprocess.run([name, "version"], capture_output=True, text=True, timeout=60)
        except (OSError, subprocess.TimeoutExpired):
            return False
        return done.returncode == 0 and (name == "podman" or "Podman" not in done.stdout)

    def image_name(self, tag: str) -> str:
        """A name that no other run has; the image of that name goes when the engine does."""
        name = f"{self._names}:{tag}"
        self._tagged.add(name)
        return name

    def run(self, *arguments: str, check: bool = True, timeout: float = 120.0) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [self.name, *arguments], capture_output=True, text=True, env=self.environment, timeout=timeout
        )
        assert not check or done.returncode == 0, f"{self.name} {' '.join(arguments[:3])}: {done.stderr.strip()}"
        return done

    def build(self, target: str, *flags: str, tag: str = "", timeout: float = 900.0, **environment: str) -> str:
        """Runs deploy/image/build.sh; the image's name.  AssertionError: it failed, with the end of what it said.

        Its provenance is in `provenance` afterwards.
        """
        image = self.image_name(tag or target)
        with tempfile.NamedTemporaryFile("r") as statement:
            done = subprocess.run(
                [str(ROOT / "deploy/image/build.sh"), target, *flags],
                stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=timeout,
                env={
                    **self.environment, "ENGINE": self.name, "IMAGE": image, "PROVENANCE": statement.name, **environment
                },
            )  # fmt: skip
            assert done.returncode == 0, done.stdout[-4000:]
            self.provenance[image] = statement.read()
        return image

    def build_on(self, image: str, builder: str, folder: Path, tag: str) -> str:
        """Builds an image of a user's own, from the folder's Dockerfile; its name."""
        name = self.image_name(tag)
        own = ["--network=host", "--format=docker"] if self.name == "podman" else []
        flags = [f"--build-arg=PKG={image}", f"--build-arg=BUILDER={builder}", *self.secrets()]
        self.run("build", *own, *flags, "--tag", name, str(folder), timeout=600)
        return name

    def secrets(self) -> list[str]:
        """Flags of `build` that hand over what pip needs to reach its index here, as deploy/image/build.sh does."""
        certificates = os.environ.get("SSL_CERT_FILE", "/etc/ssl/certs/ca-certificates.crt")
        paths = {"pip_conf": os.environ.get("PIP_CONFIG_FILE", ""), "ca": os.environ.get("PIP_CERT", certificates)}
        return [f"--secret=id={name},src={path}" for name, path in paths.items() if os.path.isfile(path)]

    def inspect(self, image: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.run("image", "inspect", image).stdout)[0]
        return found

    def has_source_date_epoch(self) -> bool:
        """Docker's builder takes an image's time from it since Docker 23."""
        return (
            self.name == "podman" or int(self.run("version", "--format={{.Server.Version}}").stdout.split(".")[0]) >= 23
        )

    def digests(self, image: str) -> list[str]:
        """Of the unpacked layers, the lowest first."""
        return list(self.inspect(image)["RootFS"]["Layers"])

    @contextlib.contextmanager
    def container(
        self,
        image: str,
        *arguments: str,
        flags: tuple[str, ...] = (),
        environment: Mapping[str, str] | None = None,
        health_check: bool = False,
        hardened: bool = True,
    ) -> Iterator[Container]:
        """A running one, hardened unless told otherwise, on a free port of the host's network; gone at the end."""
        name, port = f"pkg-test-{secrets.token_hex(4)}", free_port()
        settings = {"PORT": str(port), "HOST": "127.0.0.1", "PKG_ADMIN": "off", **(environment or {})}
        own = ["--read-only-tmpfs=false"] if self.name == "podman" else []
        if self.name == "podman" and not health_check:
            own.append("--no-healthcheck")  # without systemd nothing would run it
        begin = time.monotonic()
        try:
            self.run(
                "run", "--detach", f"--name={name}", "--network=host", *(HARDENED if hardened else ()), *own,
                *(f"--env={key}={value}" for key, value in settings.items()), *flags, image, *arguments,
            )  # fmt: skip
            yield Container(self, name, port, begin)
        finally:
            self._remove(name)

    def python(self, image: str, code: str, *flags: str, hardened: bool = True) -> str:
        """What the image's interpreter prints when it runs that."""
        own = ["--read-only-tmpfs=false", "--no-healthcheck"] if self.name == "podman" else []
        return self.run(
            "run", "--rm", "--network=host", *(HARDENED if hardened else ()), *own, *flags,
            "--entrypoint=/usr/bin/python3", image, "-c", code,
        ).stdout  # fmt: skip

    @contextlib.contextmanager
    def files(self, image: str) -> Iterator[tarfile.TarFile]:
        """All of the image's files as one archive."""
        own = ["--no-healthcheck"] if self.name == "podman" else []
        container = self.run("create", *own, image).stdout.strip().splitlines()[-1]
        try:
            with tempfile.TemporaryFile() as file:
                subprocess.run([self.name, "export", container], stdout=file, check=True, env=self.environment)
                file.seek(0)
                with tarfile.open(fileobj=file) as archive:
                    yield archive
        finally:
            self._remove(container)

    def _remove(self, container: str) -> None:
        # At once; podman would ask for a drain first.
        self.run("rm", "--force", "--volumes", *(["--time=0"] if self.name == "podman" else []), container, check=False)

    @functools.cache  # noqa: B019 - one engine a session
    def layers(self, image: str) -> list[Layer]:
        """The lowest first."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "image.tar")
            self.run("save", "--output", str(path), image)
            with tarfile.open(path) as archive:
                manifest = json.load(archive.extractfile("manifest.json") or io.BytesIO(b"[]"))
                found = []
                for name in manifest[0]["Layers"]:
                    member: tarfile.TarInfo | str = archive.getmember(name)
                    assert isinstance(member, tarfile.TarInfo)
                    if member.issym():
                        member = os.path.normpath(os.path.join(os.path.dirname(name), member.linkname))
                    data = (archive.extractfile(member) or io.BytesIO()).read()
                    plain = gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data
                    found.append(Layer(len(plain), len(gzip.compress(plain, 6))))
        return found


class Container:
    """One that was started.  `begun`: the monotonic time before the command that started it."""

    def __init__(self, engine: Engine, name: str, port: int, begun: float) -> None:
        self.engine, self.name, self.port, self.begun = engine, name, port, begun

    def get(self, path: str, timeout: float = 10.0) -> Answer:
        """Status 0: no answer."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=timeout) as response:
                return Answer(response.status, response.read().decode())
        except urllib.error.HTTPError as error:
            with error:
                return Answer(error.code, error.read().decode())
        except OSError as error:
            return Answer(0, str(error))

    def wait_until(self, path: str, status: int, timeout: float = 30.0) -> Answer:
        def answer() -> Answer | None:
            given = self.get(path)
            return given if given.status == status else None

        try:
            found: Answer = wait_for(answer, f"{path} answering {status}", timeout)
        except AssertionError as error:
            raise AssertionError(f"{error}; the last answer: {self.get(path)}; the log:\n{self.log()}") from None
        return found

    def exec(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return self.engine.run("exec", self.name, *arguments, check=False)

    def log(self) -> str:
        done = self.engine.run("logs", self.name, check=False)
        return done.stdout + done.stderr

    def state(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.engine.run("container", "inspect", self.name).stdout)[0]["State"]
        return found

    def wait(self, timeout: float = 60.0) -> int:
        """The exit code once it has ended."""
        return int(self.engine.run("wait", self.name, timeout=timeout).stdout.split()[-1])

    def signal(self, name: str) -> None:
        self.engine.run("kill", f"--signal={name}", self.name)
