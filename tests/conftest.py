"""Fixtures of all tests. The only place that knows where real data and models may lie."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, settings

from tests.extent import ALL, examples

ROOT = Path(__file__).resolve().parents[1]

#: Folders whose files are handed to the processes first. Those of the longest files, so that none
#: of them is left for the end, when the other processes have nothing more to do.
FIRST = (ROOT / "tests" / "e2e", ROOT / "tests" / "workers")

# How long an example takes says more of the machine than of the code.
PATIENT = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
# By day the same examples every time, so that a commit is judged by what it changed; by night
# new ones.
settings.register_profile("slice", PATIENT, derandomize=True, max_examples=40)
settings.register_profile("nightly", PATIENT, max_examples=examples(PATIENT.max_examples))
settings.load_profile("nightly" if ALL else "slice")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Puts the tests of ``FIRST`` in front; the order within a folder stays."""
    items.sort(key=lambda item: _place(item.path))


def _place(path: Path) -> int:
    return next((n for n, folder in enumerate(FIRST) if path.is_relative_to(folder)), len(FIRST))


@pytest.fixture(autouse=True)
def own_logging() -> Iterator[None]:
    """Undoes what a test does to the root logger (a command line sets up its own logging).

    A handler that stayed would write to the test's captured stderr, which is closed by the time
    that a background thread of a later test has something to say.
    """
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


@pytest.fixture(autouse=True)
def same_random_numbers() -> None:
    """Begins torch's own generator anew where torch is loaded: else what a test draws of it would
    depend on which tests its process ran before."""
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(0)


@pytest.fixture(scope="session")
def root() -> Path:
    """The repository."""
    return ROOT


@pytest.fixture(scope="session")
def shared() -> Path:
    """Real data sets and published networks (CERTSERVE_TEST_DATA); without them tests skip."""
    folder = Path(os.environ.get("CERTSERVE_TEST_DATA", ROOT.parent / "shared"))
    if not (folder / "data").is_dir():
        pytest.skip("no test data: set CERTSERVE_TEST_DATA")
    return folder


@pytest.fixture
def rng() -> np.random.Generator:
    """Random numbers, the same in every run."""
    return np.random.default_rng(0)
