"""The child that reads uploads is limited, alone, and its end is understood: forked or fresh."""

from __future__ import annotations

import itertools
import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from service.contract.processes import ProcessId, wait_until
from tests.workers.jobs.conftest import WAIT_S
from workers.jobs.inspection import sandbox
from workers.jobs.inspection.sandbox import ChildEnded, ChildLimits, run_child
from workers.jobs.runtime import template
from workers.jobs.runtime.fork_server import ForkServer, ForkServerLost

#: Everything about a process that the two ways of starting it could differ in.
LOOK = """
import json, os, resource, stat
def is_socket(descriptor):
    try:
        return stat.S_ISSOCK(os.fstat(descriptor).st_mode)
    except OSError:
        return False
listed = [int(name) for name in os.listdir('/proc/self/fd')]
status = dict(line.split(':', 1) for line in open('/proc/self/status'))
json.dump({
    'env': dict(os.environ),
    'cwd': os.getcwd(),
    'limits': {n: resource.getrlimit(getattr(resource, n)) for n in dir(resource) if 'RLIMIT' in n},
    'no_new_privileges': status['NoNewPrivs'].strip(),
    'capabilities': status['CapEff'].strip(),
    'signals': [status[name].strip() for name in ('SigBlk', 'SigCgt')],
    'open': sorted(d for d in listed if os.path.exists(f'/proc/self/fd/{d}')),
    'sockets': [d for d in listed if is_socket(d)],
    'targets': [os.readlink(f'/proc/self/fd/{d}') for d in (0, 1, 2)],
    'leads_its_session': os.getsid(0) == os.getpid(),
    'umask': os.umask(0o77),
    'arguments': len(sys.argv),
    'threads': len(os.listdir('/proc/self/task')),
}, open('seen', 'w'))
"""

Run = Callable[..., tuple[ChildEnded, Path]]


@pytest.fixture(scope="module")
def modules(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the probes lie: outside any child's own folder."""
    return tmp_path_factory.mktemp("modules")


@pytest.fixture(scope="module")
def made(modules: Path) -> Iterator[ForkServer]:
    """A template that can import the probes."""
    environment = dict(template.environment())
    environment["PYTHONPATH"] += f":{modules}"
    server = ForkServer.start(template.command, environment)
    yield server
    server.close()


@pytest.fixture
def forks(made: ForkServer) -> ForkServer:
    """The template, once it is there."""
    assert made.ready(WAIT_S)
    return made


@pytest.fixture(params=["fresh", "forked"])
def way(request: pytest.FixtureRequest) -> ForkServer | None:
    """What a child is forked from; None where it is a fresh interpreter."""
    return request.getfixturevalue("forks") if request.param == "forked" else None


@pytest.fixture
def run(tmp_path: Path, modules: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run a piece of Python in the sandbox, each time in a new folder."""
    original, numbers = sandbox._environment, itertools.count()

    def environment(folder: Path) -> dict[str, str]:
        found = dict(original(folder))
        return {**found, "PYTHONPATH": f"{found['PYTHONPATH']}:{modules}"}

    monkeypatch.setattr(sandbox, "_environment", environment)

    def run_code(
        code: str,
        way: ForkServer | None,
        *,
        stop: Callable[[], bool] = lambda: False,
        **limits: Any,
    ) -> tuple[ChildEnded, Path]:
        folder = tmp_path / f"box-{next(numbers)}"
        folder.mkdir()
        name = f"probe_{tmp_path.name}_{folder.name}".replace("-", "_")
        lines = "\n".join(f"    {line}" for line in code.strip().splitlines())
        (modules / f"{name}.py").write_text(
            "import sys\nfrom workers.jobs.inspection.sandbox import enter\n"
            f"def main():\n    enter(sys.argv[1:])\n{lines}\n    return 0\n"
            "if __name__ == '__main__':\n    sys.exit(main())\n"
        )
        return run_child(
            name, [], folder=folder, limits=ChildLimits(**limits), stop=stop, forks=way
        ), folder

    return run_code


@pytest.fixture
def child(run: Run, way: ForkServer | None) -> Run:
    """The same, started the one way and the other."""

    def run_code(code: str, **options: Any) -> tuple[ChildEnded, Path]:
        return run(code, way, **options)

    return run_code


def test_environment_and_folder(child: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CERTSERVE_REDIS_URL", "redis://:secret@host")
    ended, folder = child(LOOK)
    assert ended.status == 0, ended.tail
    seen = json.loads((folder / "seen").read_text())
    assert not any("REDIS" in name or "secret" in value for name, value in seen["env"].items())
    assert seen["cwd"] == seen["env"]["HOME"] == seen["env"]["TMPDIR"] == str(folder)
    assert seen["limits"]["RLIMIT_CORE"] == [0, 0]
    assert seen["no_new_privileges"] == "1"
    assert seen["open"] == [0, 1, 2]
    assert seen["sockets"] == []
    assert seen["targets"] == [os.devnull, *[str(folder / "stderr")] * 2]
    assert seen["leads_its_session"]


def test_a_forked_child_is_what_a_fresh_one_is(run: Run, forks: ForkServer) -> None:
    seen = []
    for way in (None, forks):
        ended, folder = run(LOOK, way, memory_bytes=3 * 2**30, cpu_s=77, open_files=99)
        assert ended.status == 0, ended.tail
        text = (folder / "seen").read_text().replace(str(folder), "BOX")
        seen.append(json.loads(text))
    assert seen[0] == seen[1]
    assert seen[0]["limits"]["RLIMIT_AS"] == [3 * 2**30] * 2


def test_memory(child: Run) -> None:
    ended, _ = child("x = bytearray(2**30)", memory_bytes=512 * 2**20)
    assert ended.status != 0
    assert ended.out_of_limits


def test_memory_of_the_libraries_counts(child: Run) -> None:
    ended, _ = child("import torch\nx = torch.ones(2**28)", memory_bytes=2**30)
    assert ended.status != 0
    assert ended.out_of_limits, ended.tail


def test_processor_time(child: Run) -> None:
    ended, _ = child("while True: pass", cpu_s=1)
    assert ended.status == -signal.SIGXCPU
    assert ended.out_of_limits
    assert not ended.timed_out
    assert not ended.killed


def test_wall_clock(child: Run) -> None:
    started = time.monotonic()
    ended, _ = child("import time; time.sleep(600)", wall_s=1.0)
    assert ended.timed_out
    assert ended.status == -9
    assert ended.out_of_limits
    assert time.monotonic() - started < 300


def test_what_a_child_started_is_stopped_with_it(child: Run, tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    code = (
        "import os, subprocess, time\n"
        "process = subprocess.Popen(['sleep', '600'])\n"
        f"open('{pid}.new', 'w').write(str(process.pid))\n"
        f"os.rename('{pid}.new', '{pid}')\n"
        "time.sleep(600)"
    )
    ended, _ = child(code, stop=pid.exists)
    assert ended.stopped
    assert ended.status == -9
    assert wait_until(lambda: ProcessId.of(int(pid.read_text())) is None, WAIT_S)


def test_file_size(child: Run) -> None:
    ended, _ = child("open('big', 'wb').write(b'x' * 2**22)", file_bytes=2**20)
    assert ended.status != 0


def test_open_files(child: Run) -> None:
    ended, _ = child("kept = [open('/dev/null') for _ in range(60)]", open_files=50)
    assert ended.status == 1
    assert "Too many open files" in ended.tail


def test_exit_status(child: Run) -> None:
    assert child("return 3")[0] == ChildEnded(3, False, False, "")
    assert child("raise SystemExit(5)")[0].status == 5
    ended, _ = child("raise KeyError('what')")
    assert (ended.status, ended.tail.splitlines()[-1]) == (1, "KeyError: 'what'")


@pytest.mark.parametrize("signal_number", [6, 9, 11, 15])
def test_crash(child: Run, signal_number: int) -> None:
    ended, _ = child(f"import os; os.kill(os.getpid(), {signal_number})")
    assert ended.status == -signal_number
    assert not ended.out_of_limits
    assert ended.killed == (signal_number in (9, 15))


def test_the_output_of_a_child_cannot_be_led_elsewhere(child: Run, tmp_path: Path) -> None:
    ended, folder = child("print('out'); print('err', file=sys.stderr)")
    assert sorted(ended.tail.split()) == ["err", "out"]
    assert not (folder / "stderr").is_symlink()


def test_nothing_of_an_earlier_child_is_left(run: Run, forks: ForkServer) -> None:
    run("import builtins, os; builtins.mark = 'left behind'; os.environ['MARK'] = 'x'", forks)
    ended, _ = run(
        "import builtins, os\nassert not hasattr(builtins, 'mark')\n"
        "assert 'MARK' not in os.environ\n"
        "assert not [name for name in sys.modules if name.startswith('probe')"
        " and not name.endswith(__name__)]",
        forks,
    )
    assert ended.status == 0, ended.tail


def test_random_numbers_differ(run: Run, forks: ForkServer) -> None:
    """What is seeded when it is imported would give all children the same numbers."""
    seen = set()
    for _ in range(2):
        ended, folder = run(
            "import numpy, random, tempfile, uuid\n"
            "open('seen', 'w').write(repr((float(numpy.random.rand()), random.random(),"
            " uuid.uuid4().hex, next(tempfile._get_candidate_names()))))",
            forks,
        )
        assert ended.status == 0, ended.tail
        seen |= set((folder / "seen").read_text().split(", "))
    assert len(seen) == 8


def test_one_thread_before_and_after(run: Run, forks: ForkServer) -> None:
    """Threads that a library started before the fork would be missing after it."""

    def threads() -> list[str]:
        return os.listdir(f"/proc/{forks.pid}/task")

    assert len(threads()) == 1
    assert run("import torch; torch.ones(999, 999) @ torch.ones(999, 999)", forks)[0].status == 0
    assert len(threads()) == 1


def test_a_child_may_use_the_threads_that_it_is_given(
    child: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    ended, _ = child(
        "import torch\nassert torch.get_num_threads() == 2\n"
        "x = torch.ones(700, 700)\nassert bool(((x @ x) == 700).all())"
    )
    assert ended.status == 0, ended.tail


def test_the_template_is_imported_for_what_a_child_needs(run: Run, forks: ForkServer) -> None:
    """Otherwise every single child imports it; and for nothing that only takes long."""
    wanted = [
        "torch",
        "onnx",
        "onnxruntime",
        "numpy",
        "models.onnx.importer",
        "workers.jobs.datasets.arrays",
    ]
    ended, _ = run(
        f"assert set({wanted}) <= set(sys.modules)\n"
        "assert not {'scipy.stats', 'sklearn'} & set(sys.modules)",
        forks,
    )
    assert ended.status == 0, ended.tail


def test_a_template_knows_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CERTSERVE_REDIS_URL", "redis://:secret@host")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("OMP_WAIT_POLICY", "passive")
    environment = template.environment()
    assert environment["OMP_WAIT_POLICY"] == "passive"
    assert environment["CUDA_VISIBLE_DEVICES"] == ""
    assert not any("secret" in value for value in environment.values())


def test_without_a_fork_server_the_child_starts_afresh(run: Run) -> None:
    server = template.start()
    os.kill(server._process.pid, 9)  # type: ignore[union-attr]
    ended, folder = run(LOOK, server)
    assert ended.status == 0, ended.tail
    assert json.loads((folder / "seen").read_text())["open"] == [0, 1, 2]
    server.close()


def test_a_child_ends_with_its_fork_server(run: Run, modules: Path, tmp_path: Path) -> None:
    """The item is tried again: nobody may take it for the upload's fault."""
    environment = dict(template.environment())
    environment["PYTHONPATH"] += f":{modules}"
    server = ForkServer.start(template.command, environment)
    assert server.ready(WAIT_S)
    pid = tmp_path / "pid"

    def stop() -> bool:
        if pid.exists():
            os.kill(server.pid, 9)
        return False

    code = (
        f"import os, time\nopen('{pid}.new', 'w').write(str(os.getpid()))\n"
        f"os.rename('{pid}.new', '{pid}')\ntime.sleep(600)"
    )
    with pytest.raises(ForkServerLost):
        run(code, server, stop=stop)
    assert wait_until(lambda: ProcessId.of(int(pid.read_text())) is None, WAIT_S)
    assert run("return 7", server)[0].status == 7
    server.close()


def test_a_crash_with_no_address_space_left_is_the_limits_doing(child: Run) -> None:
    """Native code that does not look whether it got its memory ends by a signal."""
    opened = (
        "from pathlib import Path\n"
        "from workers.jobs.inspection.sandbox import opens_uploads; opens_uploads(Path())\n"
    )
    fill = (
        "import mmap, resource; own = int(open('/proc/self/statm').read().split()[0]) * 4096\n"
        "kept = mmap.mmap(-1, int(0.95 * resource.getrlimit(resource.RLIMIT_AS)[0]) - own)\n"
    )
    for code, memory, number, told in (
        (opened + fill, 2**33, 11, True),
        (opened, 2**33, 11, False),
        ("", 2**33, 7, False),
        ("", sandbox.OWN_BYTES - 1, 6, True),
    ):
        crash = f"import os, time; time.sleep(0.4); os.kill(os.getpid(), {number})"
        ended, _ = child(code + crash, memory_bytes=memory)
        assert ended.status == -number, ended.tail
        assert ended.out_of_limits == told
