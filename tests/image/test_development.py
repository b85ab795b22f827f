"""`make run` in a container, for those whose machine is no Linux: the compose file, and what it starts."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pkg.settings.declared import load
from tests.image.conftest import needed
from tests.image.engine import ROOT, Engine

yaml = needed("yaml")

TEXT = (ROOT / "deploy/compose.dev.yaml").read_text()
SERVICE = yaml.safe_load(TEXT)["services"]["dev"]


def test_the_compose_file_is_one() -> None:
    """By the Compose specification, to which a field misspelt is a fault."""
    compose = needed("compose_spec").PyCompose
    assert compose.from_yaml(TEXT).service_names() == ["dev"]
    with pytest.raises(ValueError, match="pull_polic"):
        compose.from_yaml(TEXT.replace("pull_policy:", "pull_polic:"))


def test_it_runs_make_in_the_checkout() -> None:
    assert (ROOT / "deploy" / SERVICE["build"] / "Dockerfile").is_file()
    settings = load({name: value for name, value in SERVICE["environment"].items() if name != "APP"})
    assert settings.reload
    assert SERVICE["ports"] == [f"127.0.0.1:{settings.port}:{settings.port}"]
    assert SERVICE["stop_grace_period"] == f"{settings.grace_period:g}s"
    volumes = dict(volume.split(":") for volume in SERVICE["volumes"])
    assert (ROOT / "deploy" / "..").resolve() == ROOT and volumes.pop("..") == "/checkout"
    assert set(volumes) == set(yaml.safe_load(TEXT)["volumes"])
    ignored = (ROOT / ".gitignore").read_text().splitlines()
    assert all(f"/{path.removeprefix('/checkout/')}/" in ignored for path in volumes.values())


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy, as a container's root writes into it."""
    folder = tmp_path_factory.mktemp("checkout")
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in listed.splitlines():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / name)
    return folder


@pytest.mark.long
def test_it_serves_and_starts_again_with_a_change(engine: Engine, checkout: Path) -> None:
    """The file's image, command, environment and volumes, by the engine itself: it may be without compose."""
    base: list[str] = []
    if engine.run("pull", "docker.io/library/debian:13-slim", check=False).returncode != 0:
        done = subprocess.run(
            [sys.executable, "tests/image/standin.py", "--engine", engine.name],
            cwd=ROOT, env=engine.environment, capture_output=True, text=True, check=True,
        )  # fmt: skip
        (name,) = (line.partition("=")[2] for line in done.stdout.splitlines() if line.startswith("builder="))
        base = [f"--build-arg=BASE_IMAGE={name}"]
    image = engine.image_name("dev")
    own = ["--network=host"] if engine.name == "podman" else []
    engine.run("build", *own, *base, "--tag", image, str(ROOT / "deploy" / SERVICE["build"]), timeout=600)

    flags = [f"--volume={checkout}:/checkout"]
    flags += [f"--volume=/checkout/{name}" for name in (".venv", ".postgres")]
    environment = {**SERVICE["environment"], "APP": "examples.handler_app:Handler"}
    certificates = os.environ.get("PIP_CERT", "/etc/ssl/certs/ca-certificates.crt")
    if os.path.isfile(certificates):  # what pip needs to reach its index from here
        flags.append(f"--volume={certificates}:/run/ca:ro")
        environment["PIP_CERT"] = "/run/ca"
    with engine.container(
        image, *SERVICE["command"], flags=tuple(flags), environment=environment, hardened=False
    ) as container:
        container.wait_until("/readyz/database", 200, timeout=400)
        assert container.get("/").status == 200
        application = checkout / "examples/handler_app.py"
        application.write_text(application.read_text().replace("def do_GET", "def do_HEAD", 1))
        container.wait_until("/", 501)
        container.signal("TERM")
        container.wait()
        assert "stopped: " in container.log()
