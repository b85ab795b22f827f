"""A user's own image, three lines on top of ours: the example, built and run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.image.engine import ROOT, Engine
from tests.support.faults.postgres import Postgres

EXAMPLE = ROOT / "examples/image"


@pytest.fixture(scope="module")
def own_image(engine: Engine, image: str, builder_image: str) -> str:
    return engine.build_on(image, builder_image, EXAMPLE, "own")


def test_flask_in_an_image_of_its_own(engine: Engine, own_image: str, postgres: Postgres) -> None:
    with engine.container(own_image, environment={"DATABASE_URL": postgres.url}) as container:
        container.wait_until("/readyz", 200)
        answer = container.get("/")
        assert answer.status == 200
        assert json.loads(answer.body)["database"].startswith("PostgreSQL ")
        assert container.get("/nothing").status == 404
        container.signal("TERM")
        assert container.wait() == 0


def test_it_is_three_lines() -> None:
    text = Path(EXAMPLE, "Dockerfile").read_text()
    last = text[text.rindex("FROM ") :].strip().splitlines()
    assert [line.split()[0] for line in last] == ["FROM", "COPY", "ENV"]


def test_another_command_of_the_application(engine: Engine, own_image: str) -> None:
    """As docs/deploying.md runs migrations."""
    flags = ["--network=host", "--env=PYTHONPATH=/app", "--entrypoint=/usr/bin/python3"]
    assert engine.run("run", "--rm", *flags, own_image, "-m", "flask", "--version").stdout.startswith("Python 3.13")


def test_it_keeps_what_the_image_is(engine: Engine, image: str, own_image: str) -> None:
    ours, own = engine.inspect(image)["Config"], engine.inspect(own_image)["Config"]
    for key in ("Entrypoint", "User", "WorkingDir", "StopSignal", "ExposedPorts"):
        assert own.get(key) == ours.get(key)
    with engine.files(own_image) as archive:
        names = archive.getnames()
    assert "app/app.py" in names and "app/__pycache__/app.cpython-313.pyc" in names
    assert not [name for name in names if name.startswith(("app/pip", "app/bin", "venv"))]
