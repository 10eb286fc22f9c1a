"""How compute threads wait: watched, or asleep, unless an operator says otherwise."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.workers.jobs.conftest import Corridor
from workers.jobs.hardware import compute_threads
from workers.jobs.hardware.barrier_waits import WATCHED
from workers.jobs.hardware.compute_threads import SLEEPING, prepare_threads
from workers.jobs.inspection import sandbox
from workers.jobs.runtime import worker


@pytest.fixture(params=[True, False], ids=["watched", "not watched"])
def waiting(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """What the environment says of waiting where threads can be watched, and where not."""
    monkeypatch.setattr(compute_threads, "can_watch", lambda: request.param)
    return dict(WATCHED if request.param else SLEEPING)


def test_an_operators_own_setting_wins(waiting: dict[str, str]) -> None:
    assert prepare_threads(3, {}) == {"OMP_NUM_THREADS": "3", **waiting}
    own = {"OMP_NUM_THREADS": "7", "OMP_WAIT_POLICY": "ACTIVE", "GOMP_SPINCOUNT": "5"}
    assert prepare_threads(3, dict(own)) == own
    for name in WATCHED:
        part = {"OMP_NUM_THREADS": "7", name: own[name]}
        assert prepare_threads(3, dict(part)) == part


#: Says how libgomp, as torch loads it, will wait: it prints its settings where it is asked to.
SHOW = "import torch; torch.set_num_threads(2); print(torch.get_num_threads())"


def test_the_runtime_that_torch_loads_knows_the_variable() -> None:
    """Told by the runtime itself: a wheel with another one would silently ignore the setting."""
    environment = {"OMP_DISPLAY_ENV": "VERBOSE", "PATH": os.environ["PATH"]}
    told = {}
    for name, own in (("ours", SLEEPING), ("watched", WATCHED), ("none", {})):
        ended = subprocess.run(
            [sys.executable, "-c", SHOW],
            env={**environment, **own},
            capture_output=True,
            text=True,
            check=True,
        )
        assert ended.stdout == "2\n"
        told[name] = ended.stderr
    assert "GOMP_SPINCOUNT = '0'" in told["ours"]
    assert "GOMP_SPINCOUNT = '0'" not in told["none"]
    # As long as it spins by itself.
    spins = [line for line in told["none"].splitlines() if "GOMP_SPINCOUNT" in line]
    assert spins
    assert set(spins) <= set(told["watched"].splitlines())


def test_a_worker_hands_it_to_its_template_its_horses_and_their_children(
    corridor: Corridor,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    waiting: dict[str, str],
) -> None:
    """The worker is started as it is everywhere, up to the point where it would wait for work."""
    for name in ("OMP_NUM_THREADS", *WATCHED):
        monkeypatch.setenv(name, "")  # so that what the worker sets is undone
        monkeypatch.delenv(name)
    seen: dict[str, str] = {}
    templates: list[dict[str, str]] = []

    def no_template() -> None:
        """What a template would have been started with; the work horse starts fresh then."""
        templates.append(dict(worker.template.environment()))

    def spawned(path: str, command: list[str], environment: dict[str, str], **_: object) -> int:
        seen.update(environment)
        return 0

    def work(self: worker.CertificationWorker, **_: object) -> bool:
        self.execution = type("Execution", (), {"id": "e"})()  # type: ignore[assignment]
        job = type("Job", (), {"id": "j"})()
        self.fork_work_horse(job, self.queues[0])
        return True

    monkeypatch.setattr(worker.os, "posix_spawn", spawned)
    monkeypatch.setattr(worker.CertificationWorker, "work", work)
    monkeypatch.setattr(worker, "Settings", lambda: corridor.settings)
    monkeypatch.setattr(worker.template, "start", no_template)
    assert worker.main() == 0
    expected = {"OMP_NUM_THREADS": str(corridor.settings.worker_threads), **waiting}
    assert {name: seen[name] for name in expected} == expected
    # A template forks, so it computes nothing and has one thread; how they wait is handed on.
    assert [{k: v for k, v in one.items() if k in WATCHED} for one in templates] == [waiting]
    child = sandbox._environment(tmp_path)
    assert {name: child[name] for name in expected} == expected
    assert json.dumps(dict(child))  # nothing in it that could not be handed on
