"""A fixture for pytest, which finds it by itself: `pkg_running` gives the tests of a module the pool and the checks."""

from __future__ import annotations

from collections.abc import Iterator

import pytest


@pytest.fixture(scope="module")
def pkg_running() -> Iterator[None]:
    """`pkg.running()` around the tests of a module, with the settings of the environment: DATABASE_URL and others."""
    import pkg

    with pkg.running():
        yield
