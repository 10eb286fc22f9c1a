"""What runs on an accelerator gives what the CPU gives, and leaves no tensor behind."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("what", ["certify", "train"])
def test_an_accelerator_gives_what_the_cpu_gives(what: str) -> None:
    child = subprocess.run(
        [sys.executable, "-m", "tests.workers.accelerated", what],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert child.returncode == 0, child.stdout + child.stderr[-3000:]
