"""Phases: the whole table of transitions."""

from __future__ import annotations

import itertools

import pytest

from pkg.lifecycle import Lifecycle, Phase

ALLOWED = {
    (Phase.STARTING, Phase.READY),
    (Phase.STARTING, Phase.DRAINING),
    (Phase.READY, Phase.DRAINING),
    (Phase.DRAINING, Phase.STOPPED),
}
PATHS = {
    Phase.STARTING: [],
    Phase.READY: [Phase.READY],
    Phase.DRAINING: [Phase.READY, Phase.DRAINING],
    Phase.STOPPED: [Phase.DRAINING, Phase.STOPPED],
}


@pytest.mark.parametrize(("before", "after"), list(itertools.product(Phase, Phase)))
def test_transitions(before: Phase, after: Phase) -> None:
    life = Lifecycle()
    for phase in PATHS[before]:
        life.advance(phase)
    assert life.phase is before
    if (before, after) in ALLOWED:
        life.advance(after, "why")
        assert (life.phase, life.reason) == (after, "why")
    else:
        with pytest.raises(ValueError, match=f"the phase {after.value} cannot follow {before.value}"):
            life.advance(after)
        assert life.phase is before
