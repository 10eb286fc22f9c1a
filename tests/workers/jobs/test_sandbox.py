"""The child that reads uploads is limited, alone, and its end is understood."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from workers.jobs.sandbox import ChildEnded, Limits, run_child


@pytest.fixture
def child(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Run a piece of Python in the sandbox; its module lies outside the child's own folder."""

    def run(code: str, **limits: float) -> tuple[ChildEnded, Path]:
        folder = tmp_path / "box"
        folder.mkdir()
        modules = tmp_path / "modules"
        modules.mkdir()
        lines = "\n".join(f"    {line}" for line in code.splitlines())
        (modules / "probe.py").write_text(
            "import sys\nfrom workers.jobs.sandbox import enter\n"
            f"def main():\n    enter(sys.argv[1:])\n{lines}\nmain()\n"
        )
        monkeypatch.setattr("workers.jobs.sandbox._environment", with_path(modules))
        return run_child("probe", [], folder=folder, limits=Limits(**limits)), folder  # type: ignore[arg-type]

    return run


def with_path(extra: Path):
    from workers.jobs.sandbox import _environment

    def environment(folder: Path) -> dict[str, str]:
        original = dict(_environment(folder))
        original["PYTHONPATH"] += f":{extra}"
        return original

    return environment


def test_environment_and_folder(child, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CERTSERVE_REDIS_URL", "redis://:secret@host")
    ended, folder = child(
        "import json, os, resource\n"
        "json.dump({'env': dict(os.environ), 'cwd': os.getcwd(),"
        " 'core': resource.getrlimit(resource.RLIMIT_CORE),"
        " 'status': open('/proc/self/status').read()}, open('seen', 'w'))"
    )
    assert ended.status == 0, ended.tail
    seen = json.loads((folder / "seen").read_text())
    assert not any("REDIS" in name or "secret" in value for name, value in seen["env"].items())
    assert seen["cwd"] == str(folder)
    assert seen["core"] == [0, 0]
    assert "NoNewPrivs:\t1" in seen["status"]


def test_memory(child) -> None:
    ended, _ = child("x = bytearray(2**30)", memory_bytes=512 * 2**20)
    assert ended.status != 0
    assert ended.out_of_limits


def test_processor_time(child) -> None:
    ended, _ = child("while True: pass", cpu_s=1)
    assert ended.out_of_limits
    assert not ended.timed_out


def test_wall_clock(child) -> None:
    started = time.monotonic()
    ended, _ = child("import time; time.sleep(600)", wall_s=1.0)
    assert ended.timed_out
    assert ended.out_of_limits
    assert time.monotonic() - started < 300


def test_file_size(child) -> None:
    ended, _ = child("open('big', 'wb').write(b'x' * 2**22)", file_bytes=2**20)
    assert ended.status != 0


def test_crash_is_no_limit(child) -> None:
    ended, _ = child("import os; os.kill(os.getpid(), 11)")
    assert ended.status == -11
    assert not ended.out_of_limits
