"""A limit and a counter of the front are one line each: nothing between setting, C and metric knows their names."""

from __future__ import annotations

import ast
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import pkg._core as core
from pkg.settings.declared import SETTINGS
from tests.support.client import get, wait_for
from tests.support.ports import free_port
from tests.support.processes import ask, running

ROOT = Path(__file__).resolve().parent
while not (ROOT / "setup.py").exists():
    ROOT = ROOT.parent

# A setting that C acts on, and a counter: file, a line that is there, what is added before it.
SETTING = {
    "pkg/settings/declared.py": (
        "    max_queue = Setting(",
        '    max_wonder = Setting(INTEGER, 7, "How much each request counts.", 1, 100)\n',
    ),
    "ext/front/limits.h": ("    NUMBER(max_queue,", "    NUMBER(max_wonder, 7, 0, 100) \\\n"),
    "ext/front/conn.c": (
        "    count_add(&f->count.requests, 1);",
        "    count_add(&f->count.wonders, f->limits.max_wonder);\n",
    ),
}
COUNTER = {
    "ext/front/counters.h": ("    EVENT(accepted,", '    EVENT(wonders, "pkg_wonders", "What was counted.") \\\n'),
}
APPLICATION = """
def app(environ, start_response):
    start_response("200 OK", [("Content-Length", "2")])
    return [b"ok"]
"""


def test_a_setting_that_reaches_c_touches_three_files() -> None:
    assert len(SETTING) <= 3
    assert len(COUNTER.keys() | {"ext/front/conn.c"}) <= 3


def test_a_limit_has_the_default_of_its_setting() -> None:
    text = (ROOT / "ext/front/limits.h").read_text()
    limits = {setting.name: setting for setting in SETTINGS if setting.name in core.LIMITS}
    assert len(limits) >= len(core.LIMITS) - 2  # linger_timeout is no setting, proxy_optional has a longer name
    for name, setting in limits.items():
        line = next(line for line in text.splitlines() if f"({name}, " in line)
        usual = line.split(f"({name}, ")[1].split(",")[0].replace(" * FRONT_SECOND", "")
        assert eval(usual, {"false": False, "true": True}) == setting.default, name


def test_the_stub_has_each_counter() -> None:
    stub = next(
        node
        for node in ast.parse((ROOT / "pkg/_core.pyi").read_text()).body
        if isinstance(node, ast.ClassDef) and node.name == "Counters"
    )
    fields = [ast.unparse(node.target) for node in stub.body if isinstance(node, ast.AnnAssign)]
    assert tuple(fields) == core.Counters._fields


@pytest.mark.parametrize(
    ("given", "error", "text"),
    [
        ({"max_wonder": 1}, TypeError, "got an unexpected keyword argument 'max_wonder'"),
        ({"max_headers": 0}, ValueError, "max_headers"),
        ({"max_header_size": 1 << 16}, ValueError, "max_header_size"),
        ({"max_queue": "5"}, TypeError, "an integer is required"),
        ({"max_queue": None}, TypeError, "an integer is required"),
        ({"idle_timeout": "1"}, TypeError, "must be real number, not str"),
        ({"idle_timeout": None}, TypeError, "must be real number, not NoneType"),
    ],
)
def test_a_wrong_limit_is_refused(given: dict[str, Any], error: type[Exception], text: str) -> None:
    with socket.socket() as listener, pytest.raises(error, match=text):
        core.Front(listener.fileno(), **given)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_they_work_from_the_setting_to_the_metric(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    for name in ("pkg", "ext"):
        shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tree / name)
    for name, (mark, text) in {**SETTING, **COUNTER}.items():
        source = (tree / name).read_text()
        assert source.count(mark) == 1, (name, mark)
        (tree / name).write_text(source.replace(mark, text + mark))
    build = [sys.executable, "setup.py", "-q", "build_ext", "--inplace"]
    made = subprocess.run(build, cwd=tree, env={**os.environ, "PKG_CFLAGS": "-O0"}, capture_output=True, text=True)
    assert made.returncode == 0, made.stderr[-4000:]
    admin = free_port()
    settings = {"PKG_MAX_WONDER": "5", "PKG_ADMIN": f"127.0.0.1:{admin}", "PYTHONPATH": str(tree)}
    with running(tmp_path, APPLICATION, **settings) as process:
        for _ in range(3):
            assert get(process.address, "/").status == 200
        wait_for(
            lambda: "\npkg_wonders_total 15\n" in ask(("127.0.0.1", admin), "/metrics")[2],
            10,
            "the counter to be there",
        )
    environ = {**os.environ, "PYTHONPATH": str(tree), "PKG_MAX_WONDER": "5"}
    shown = subprocess.run(
        [sys.executable, "-m", "pkg", "config"], env=environ, cwd=tmp_path, capture_output=True, text=True
    )
    assert shown.returncode == 0 and "max_wonder" in shown.stdout.lower(), shown.stdout + shown.stderr
    environ = {**os.environ, "PYTHONPATH": str(tree), "PKG_MAX_WONDER": "101"}
    wrong = subprocess.run([sys.executable, "-m", "pkg"], env=environ, cwd=tmp_path, capture_output=True, text=True)
    assert wrong.returncode == 2 and "PKG_MAX_WONDER" in wrong.stderr, wrong.stderr
