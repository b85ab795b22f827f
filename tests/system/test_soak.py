"""The soak itself, briefly: its clients get what they should, its books balance, and it finds what it is for."""

from __future__ import annotations

import re

import pytest

from tests.system import soak

# What no quiet moment shows, and a minute of clients makes more of.
LEAKS = {
    "descriptors": ("HELD.append(os.dup(0))", "descriptors: .*'/dev/null': "),
    "memory": ("HELD.append(bytes(65536))", "memory: .* MB more in the second half"),
    "answers": ("time.time() % 1 < 0.1 and 1 / 0", "keep_alive: Wrong"),
}


@pytest.mark.slow
def test_ten_seconds(capsys: pytest.CaptureFixture[str]) -> None:
    assert soak.run(10, 2, 24) == []
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split()[:3] == ["s", "RSS", "MB"]
    assert sum("quiet" in line for line in lines) == 8


@pytest.mark.long
@pytest.mark.timeout(300)
def test_a_minute(capsys: pytest.CaptureFixture[str]) -> None:
    assert soak.run(60, 10, 24) == []


@pytest.mark.long
@pytest.mark.parametrize("leak", LEAKS)
def test_what_leaks_is_found(leak: str, monkeypatch: pytest.MonkeyPatch) -> None:
    line, fault = LEAKS[leak]
    source = soak.APPLICATION.replace('return plain(b"hello")', f'{line}\n    return plain(b"hello")')
    monkeypatch.setattr(soak, "APPLICATION", source.replace("BLOCK =", "HELD = []\nBLOCK =", 1))
    monkeypatch.setattr(soak, "WARM_UP", 0.0)
    assert [text for text in soak.run(15, 5, 24) if re.search(fault, text)]
