"""The soak itself, briefly: its clients get what they should, its books balance, and it finds what it is for."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.system import soak

# What no quiet moment shows, and a minute of clients makes more of.
LEAKS = {
    "descriptors": ("HELD.append(os.dup(0))", "descriptors: .*'/dev/null': "),
    "memory": ("HELD.append(bytes(65536))", "memory: .* MB more in the second half"),
    "answers": ("time.time() % 1 < 0.1 and 1 / 0", "keep_alive: Wrong"),
}


@pytest.mark.slow
def test_ten_seconds(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert soak.run(10, 2, 24, picture=tmp_path / "soak.svg") == []
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split()[:3] == ["s", "RSS", "MB"]
    assert sum("quiet" in line for line in lines) == 8
    assert ">PSS without clients</text>" in (tmp_path / "soak.svg").read_text()


def test_the_plot_of_a_day() -> None:
    samples = [
        soak.Sample(10.0 * n, 50 << 20, 40 << 20, 30, 0.002, {"pkg_requests_total": 7000.0 * n}) for n in range(8640)
    ]
    picture = soak.plot(samples, [soak.Moment(3600.0 * n, 39 << 20, 23.0, ["a socket"]) for n in range(24)])
    for title in ("Memory", "Descriptors", "Short requests, 99th percentile", "Requests a second"):
        assert f">{title}</text>" in picture
    assert picture.count('stroke-width="1.6"') == 7  # lines
    assert ">24 h</text>" in picture and len(picture) < 100_000


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
