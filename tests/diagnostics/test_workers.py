"""Sums over worker processes."""

from __future__ import annotations

from pkg.diagnostics.workers import Sums


def stats(**numbers: float) -> dict[str, dict[str, float]]:
    return {"": {"pool_size": 2, "requests_num": 0, **numbers}}


def test_sums_are_of_all_workers() -> None:
    sums = Sums()
    assert sums.take([(1, stats(requests_num=3)), (2, stats(requests_num=4))])[""] == {
        "pool_size": 4,
        "requests_num": 7,
    }
    assert sums.take([(1, None), (2, None)])[""]["requests_num"] == 7  # none has answered
    assert sums.take([(3, None)]).get("", {}).get("pool_size", 0) == 0


def test_what_only_grows_stays_when_a_worker_has_ended() -> None:
    sums = Sums()
    sums.take([(1, stats(requests_num=3, checks=2, connections_used=1)), (2, stats(requests_num=4, checks=2))])
    after = sums.take([(2, stats(requests_num=5, checks=3)), (3, stats(requests_num=1, checks=1))])[""]
    assert (after["requests_num"], after["checks"], after["pool_size"]) == (3 + 5 + 1, 2 + 3 + 1, 4)
    assert "connections_used" not in after
    assert sums.take([])[""]["requests_num"] == 9
    assert "pool_size" not in sums.take([])[""]


def test_text_is_kept_and_pools_have_their_names() -> None:
    sums = Sums()
    pools = {"": {"pool_size": 1, "taken": ["app.py:3"]}, "replica": {"pool_size": 5}}
    assert sums.take([(1, pools), (2, pools)]) == {
        "": {"pool_size": 2, "taken": ["app.py:3"]},
        "replica": {"pool_size": 10},
    }


def test_what_has_nothing_that_only_grows_ends_with_its_worker() -> None:
    sums = Sums()
    executors = {"asyncio": {"size": 12, "busy": 1, "queued": 0}}
    assert sums.take([(1, executors)]) == executors
    assert sums.take([(2, None)]) == {}
