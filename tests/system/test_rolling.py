"""Rolling restarts of two real instances behind real HAProxy and nginx, under load: no request may be lost.

The instances have no more rights than in the image.
"""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.support import balancers
from tests.support.instances import Instances, folder_of_user
from tests.support.places import Place, tcp_places, unix_places
from tests.support.rolling import roll, table
from tests.support.unprivileged import describe

# Long enough for HAProxy to have seen two red answers in a row.  If it has not, on a machine that has other things to
# do, it meets a closed port and takes the other instance: nothing is lost for that.
DRAIN_DELAY = 0.5  # seconds

pytestmark = pytest.mark.skipif(
    bool(balancers.missing()), reason=f"not installed: {' '.join(balancers.missing())} (Debian's packages)"
)
LONG = [pytest.mark.long, pytest.mark.timeout(1800)]


@pytest.mark.parametrize(
    ("kind", "rounds", "pairs"),
    [
        pytest.param("tcp", 3, 1, id="few"),
        pytest.param("workers", 3, 1, id="workers"),
        pytest.param("workers", 10, 2, id="workers-ten", marks=LONG),
        pytest.param("tcp", 25, 3, id="twenty-five", marks=pytest.mark.slow),
        pytest.param("tcp", 100, 3, id="hundred", marks=LONG),
        pytest.param("unix", 10, 2, id="unix-ten", marks=pytest.mark.slow),
        pytest.param("unix and health port", 10, 2, id="unix-and-health-port-ten", marks=pytest.mark.slow),
        pytest.param("unix", 100, 3, id="unix-hundred", marks=LONG),
        pytest.param("unix and health port", 100, 3, id="unix-and-health-port-hundred", marks=LONG),
    ],
)
def test_no_request_is_lost(
    kind: str, rounds: int, pairs: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    workers = "2" if kind == "workers" else "0"
    instances = Instances(tmp_path, PKG_DRAIN_DELAY=str(DRAIN_DELAY), WEB_CONCURRENCY=workers)

    def start(place: Place) -> subprocess.Popen[Any]:
        if not place.path:
            return instances.start(PORT=str(place.port))
        health = {"PKG_HEALTH": f"127.0.0.1:{place.health_port}", "PKG_HEALTH_ON_MAIN": "false"}
        return instances.start(PKG_LISTEN=f"unix:{place.path}?mode=660", **(health if place.health_port else {}))

    with folder_of_user() as folder:
        has_health_port = kind == "unix and health port"
        count = 2 * pairs
        places = (
            tcp_places(count)
            if kind in ("tcp", "workers")
            else unix_places(count, folder, has_health_port=has_health_port)
        )
        outcome = roll(start, rounds=rounds, pairs=pairs, places=places, pause=0.01 * pairs)
        left = sorted(path.name for path in folder.iterdir())
    with capsys.disabled():
        print(f"\n{rounds} rolling restarts in {outcome.seconds:.0f} s, {kind}, {describe()}\n{table(outcome)}")
    for name in ("haproxy", "nginx"):
        total = outcome.total(name)
        assert total.sent > 20 * rounds
        assert (total.sent, total.lost) == (total.answered, {}), outcome.logs[name][-3000:] + instances.log()[-3000:]
    assert outcome.codes == [0] * (2 * rounds)
    assert "could not be stopped" not in instances.log()
    assert left == sorted(Path(place.path).name for place in places if place.path)  # of those killed at the end


@pytest.mark.parametrize(
    ("rounds", "pairs"),
    [
        pytest.param(2, 1, id="few", marks=pytest.mark.slow),
        pytest.param(12, 2, id="dozen", marks=LONG),
    ],
)
def test_streams_end_in_order(rounds: int, pairs: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Those of an ASGI application, and its WebSockets with 1001, by HAProxy and nginx and directly, beside requests of
    which none is lost."""
    app = "tests.support.streaming_application:app"
    instances = Instances(tmp_path, app, PKG_DRAIN_DELAY=str(DRAIN_DELAY), PKG_DRAIN_TIMEOUT="3s")
    paths = ("/events", "/patient", "/socket")
    outcome = roll(
        lambda place: instances.start(PORT=str(place.port)), rounds=rounds, pairs=pairs, pause=0.02, streams=paths
    )
    with capsys.disabled():
        print(f"\n{rounds} rolling restarts in {outcome.seconds:.0f} s, {describe()}\n{table(outcome)}")
    for name in ("haproxy", "nginx"):
        total = outcome.total(name)
        assert (total.sent, total.lost) == (total.answered, {}), outcome.logs[name][-3000:] + instances.log()[-3000:]
    for name, found in outcome.streams.items():
        for path, streamed in found.items():
            assert streamed.lost == {}, (name, path, str(streamed), instances.log()[-3000:])
            assert streamed.ended.total() >= rounds
            assert set(streamed.ended) == {"1001" if path == "/socket" else "in order"}
    assert outcome.codes == [0] * (2 * rounds), instances.log()[-3000:]
