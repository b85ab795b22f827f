"""--reload: the service again with each change of a Python file."""

from __future__ import annotations

import os
import re
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.client import get, wait_for
from tests.support.ports import free_port
from tests.support.processes import Process

APP = """
import time
def app(environ, start_response):
    time.sleep(float(environ["QUERY_STRING"] or 0))
    start_response("200 OK", [])
    return [b"%s"]
"""


class Reloading(Process):
    def __init__(self, folder: Path, source: str, *arguments: str, **environ: str) -> None:
        port = free_port()
        super().__init__(folder, source, ("--reload", "application:app", *arguments), {"PORT": str(port), **environ})
        self.folder = folder
        self.address = ("127.0.0.1", port)

    def write(self, name: str, source: str) -> None:
        """At once, as editors do that write another file and rename it."""
        (self.folder / "new").write_text(source)
        (self.folder / "new").rename(self.folder / name)

    def says(self, text: str) -> bool:
        try:
            return get(self.address, "/").body == text.encode()
        except OSError:
            return False

    def children(self) -> list[int]:
        text = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text()
        return [int(pid) for pid in text.split()]


@pytest.fixture
def reloading(tmp_path: Path) -> Iterator[Reloading]:
    process = Reloading(tmp_path, APP % "one")
    try:
        wait_for(lambda: process.says("one"), 20, "the first")
        yield process
    finally:
        if process.process.poll() is None:
            for child in process.children():
                os.kill(child, signal.SIGKILL)
            process.process.kill()
        process.process.wait()


def test_a_change_starts_another(reloading: Reloading) -> None:
    (first,) = reloading.children()
    reloading.write("application.py", APP % "two")
    wait_for(lambda: reloading.says("two"), 20, "the second")
    (second,) = reloading.children()
    assert first != second
    (reloading.folder / "package").mkdir()
    reloading.write("package/__init__.py", "")
    reloading.write("application.py", "import package" + APP % "three")
    wait_for(lambda: reloading.says("three"), 20, "the third")
    assert re.search(r"^pkg: application.py has changed; restarting$", reloading.errors(), re.MULTILINE)
    assert sum("draining after SIGINT" in line for line in reloading.messages()) >= 2
    assert reloading.stop(signal.SIGTERM) == 0
    assert reloading.messages()[-1].startswith("stopped: ")


def test_other_files_change_nothing(reloading: Reloading) -> None:
    (first,) = reloading.children()
    for folder in (".git", "__pycache__", "venv"):
        (reloading.folder / folder).mkdir(exist_ok=True)
    reloading.write("venv/pyvenv.cfg", "")
    for name in (".git/hook.py", "__pycache__/x.py", "venv/x.py", "notes.txt"):
        reloading.write(name, "")
    time.sleep(1.5)
    assert reloading.children() == [first]
    assert "changed" not in reloading.errors()
    assert reloading.stop() == 0


def test_a_mistake_waits_for_its_correction(reloading: Reloading) -> None:
    reloading.write("application.py", "import nothing_of_that_name")
    wait_for(
        lambda: "the service exited with code 3; waiting for a file to change" in reloading.errors(),
        20,
        "the end of the second",
    )
    assert "No module named 'nothing_of_that_name'" in reloading.errors()
    assert reloading.children() == []
    reloading.write("application.py", APP % "three")
    wait_for(lambda: reloading.says("three"), 20, "the third")
    assert reloading.stop() == 0


def test_the_exit_code_is_the_last_childs(reloading: Reloading) -> None:
    (child,) = reloading.children()
    os.kill(child, signal.SIGKILL)
    wait_for(
        lambda: "the service exited with code 137; waiting" in reloading.errors(), 20, "the child's end to be seen"
    )
    assert reloading.stop() == 137


def test_a_request_in_flight_is_answered(reloading: Reloading) -> None:
    answers: list[bytes] = []
    thread = threading.Thread(target=lambda: answers.append(get(reloading.address, "/?2").body))
    thread.start()
    time.sleep(0.5)
    reloading.write("application.py", APP % "two")
    wait_for(lambda: reloading.says("two"), 20, "the second")
    thread.join()
    assert answers == [b"one"]
    assert reloading.stop() == 0


def test_a_request_that_does_not_end_is_cut_off(reloading: Reloading) -> None:
    failures: list[Exception] = []

    def wait() -> None:
        try:
            get(reloading.address, "/?60")
        except Exception as error:
            failures.append(error)

    thread = threading.Thread(target=wait)
    thread.start()
    time.sleep(0.5)
    reloading.write("application.py", APP % "two")
    wait_for(lambda: reloading.says("two"), 20, "the second")
    thread.join()
    assert len(failures) == 1
    assert reloading.stop() == 0


def test_stacks_are_the_childs(reloading: Reloading) -> None:
    """No thread is called "Current thread" if the signal comes while none has the interpreter lock."""

    def shown() -> bool:
        # Again each time: the child answers before its main thread has come to serve_forever.
        reloading.process.send_signal(signal.SIGUSR1)
        time.sleep(0.2)
        return "in serve_forever" in reloading.errors()

    wait_for(shown, 20, "the stacks")
    assert reloading.says("one")
    assert reloading.stop() == 0


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGUSR2])
def test_the_child_does_not_outlive_its_parent(reloading: Reloading, number: int) -> None:
    """However that ends; what asks for a drain is in test_hangup.py."""
    (child,) = reloading.children()
    reloading.process.send_signal(number)
    assert reloading.process.wait() == -number
    wait_for(
        lambda: any(text.startswith("stopped: ") for text in reloading.messages()), 20, "the child to have drained"
    )
    wait_for(lambda: not Path(f"/proc/{child}/exe").exists(), 20, "the child to end")
