"""`make bench-guard` finds what has become slower, names it, and lets through what has not."""

from __future__ import annotations

import dataclasses
import re
import subprocess
from pathlib import Path

import pytest

from bench import guard
from bench.guard import Count, Row, Tree

PARSE = ("parse",)


def trees(folder: Path) -> tuple[Tree, Tree]:
    made = Tree("before", folder / "base"), Tree("after", folder / "head")
    for tree in made:
        tree.folder.mkdir()
        guard.copy(tree.folder)
    return made


def silent(text: str) -> None:
    pass


@pytest.mark.slow
def test_what_takes_two_percent_more_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    both = trees(tmp_path)
    source = both[1].folder / "ext" / "http" / "http1.c"
    text, times = re.subn(
        r"(?m)^(int http1_parse_head\([^{;]*\)\s*\{)",
        r"\1 for (volatile int i = 0; i < 8; i++) {}",
        source.read_text(),
    )
    assert times == 1
    source.write_text(text)
    rows = guard.compare(both, tmp_path, PARSE, {}, silent)
    assert 1.2 < rows[0].change < 3, rows[0].change
    assert "SLOWER" in guard.table(rows)
    assert guard.verdict(rows) == 1
    said = capsys.readouterr().out
    assert said.startswith("bench-guard: parse takes ") and "http1_parse_head" in said
    # What the commit message says in advance is let through.
    allowed = guard.allowances("Check more\n\nBench-guard: parse +3 %, because the head is checked once more\n")
    assert guard.verdict(guard.compare(both, tmp_path, PARSE, allowed, silent)) == 0


@pytest.mark.slow
def test_what_is_the_same_passes_three_times_in_a_row(tmp_path: Path) -> None:
    both = trees(tmp_path)
    for _ in range(3):
        rows = guard.compare(both, tmp_path, PARSE, {}, silent)
        assert guard.verdict(rows) == 0
        assert rows[0].counts[0] > 500
        assert abs(rows[0].change) < 0.1


@pytest.mark.slow
def test_a_service_is_counted_from_outside(tmp_path: Path) -> None:
    """One process; what it needs besides, compiler and clock and client, is what the whole comparison needs."""
    tree = trees(tmp_path)[1]
    guard.build([tree], silent)
    preload = tmp_path / "guard.so"
    guard.run(["cc", "-O2", "-shared", "-fPIC", "-pthread", "-o", preload, guard.ROOT / "bench" / "guard.c"])
    with guard.Service(tree, tmp_path, preload, "", 0, access_log=False) as service:
        hello = service.count(service.hello, 60, 6)
        probe = service.count(service.probe, 100, 6)
        again = service.count(service.probe, 100, 6)
    assert 1000 < probe.instructions < hello.instructions
    assert abs(again.instructions / probe.instructions - 1) < 0.01
    assert "conn_readable" in probe.functions


def row(before: list[float], after: list[float], allowed: float = 1.0) -> Row:
    return Row("lend", [Count(n, {}) for n in before], [Count(n, {}) for n in after], allowed)


def test_noise_is_taken_off_and_an_outlier_does_not_count() -> None:
    assert row([1000, 1000, 1000, 1000], [1012, 1012, 1012, 1012]).is_slower
    assert not row([1000, 1000, 1000, 1000], [1009, 1009, 1009, 1009]).is_slower
    assert not row([1000, 998, 1000, 1005], [1008, 1012, 1016, 1008]).is_slower  # 1.2 %, of which 0.5 % are noise
    assert not row([1000, 1000, 1000, 1000], [1000, 1034, 1000, 1000]).is_slower
    line = dataclasses.replace(row([1000, 1000, 1000, 1000], [1015, 1015, 1015, 1015]), operation="access line")
    assert not line.is_slower
    assert guard.verdict([row([1000, 1000, 1050, 1050], [1000, 1000, 1050, 1050])]) == 2


def test_lines_of_commit_messages() -> None:
    text = "A\n\nBench-guard: WSGI hello +3 %, because of x\n\nB\n\nBench-guard: WSGI hello +1.5%, because of y\n"
    assert guard.allowances(text) == {"WSGI hello": 4.5}
    for line in ("Bench-guard: WSGI hello +3 %", "Bench-guard: hello +3 %, because of x", "Bench-guard: all"):
        with pytest.raises(guard.Failed, match="one of: parse; probe"):
            guard.allowances(line)


def git(folder: Path, *words: str) -> None:
    identity = ("-c", "user.name=A", "-c", "user.email=a@b.invalid", "-c", "commit.gpgsign=false")
    subprocess.run(["git", *identity, *words], cwd=folder, check=True, capture_output=True, timeout=60)


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository of two commits, the second of which touches nothing that is counted."""
    folder = tmp_path / "origin"
    (folder / "pkg").mkdir(parents=True)
    git(folder, "init", "-q")
    (folder / "pkg" / "a.py").write_text("")
    git(folder, "add", ".")
    git(folder, "commit", "-qm", "one")
    (folder / "text").write_text("")
    git(folder, "add", ".")
    git(folder, "commit", "-qm", "two")
    monkeypatch.setattr(guard, "ROOT", folder)
    monkeypatch.setattr(guard.run, "__defaults__", (folder,))
    return folder


def test_a_commit_that_touches_nothing_passes_at_once(checkout: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert guard.main([]) == 0
    assert "nothing to count" in capsys.readouterr().out


def test_changes_are_compared_with_what_they_are_committed_on(checkout: Path) -> None:
    assert guard.choose(None)[:2] == (
        guard.commit_of("HEAD^"),
        guard.run(["git", "rev-parse", "--short", "HEAD"]).strip(),
    )
    (checkout / "pkg" / "new.py").write_text("")
    assert guard.choose(None) == (guard.commit_of("HEAD"), "the working tree", "")
    assert guard.choose("HEAD^")[2].strip() == "two"
    with pytest.raises(guard.Failed, match="no commit nonsense"):
        guard.choose("nonsense")


def test_a_shallow_checkout_says_so_and_passes(
    checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    git(tmp_path, "clone", "-q", "--depth", "1", f"file://{checkout}", "shallow")
    monkeypatch.setattr(guard.run, "__defaults__", (tmp_path / "shallow",))
    assert guard.main([]) == 0
    assert "shallow" in capsys.readouterr().out
    monkeypatch.setattr(guard.run, "__defaults__", (tmp_path,))
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert guard.main([]) == 0
    assert "no checkout" in capsys.readouterr().out
