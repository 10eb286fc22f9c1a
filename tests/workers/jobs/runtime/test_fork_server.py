"""Worker, template, horse, inspection: who knows what, and who ends with whom."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from service.contract.processes import ProcessId, wait_until
from service.contract.schemas.submissions import JobSubmission
from tests.extent import part
from tests.horses import children_of, horses_of, template_of
from tests.workers.jobs.conftest import WAIT_S, Corridor
from tests.workers.jobs.runtime.wake_up_jobs import wake_up
from workers.jobs.runtime.fork_server import ForkServer, ForkServerLost, serve

pytestmark = pytest.mark.slow

Start = Callable[..., subprocess.Popen[bytes]]

#: Given to the worker; nobody but it and its horse may know.
PASSWORD = "a-password-" + os.urandom(8).hex()


class Chain:
    """A worker whose inspection waits: what it is to read is a pipe that nobody writes to."""

    def __init__(self, corridor: Corridor, start_worker: Start) -> None:
        self.corridor = corridor
        self.job: JobSubmission = corridor.submit()
        assert self.job.model is not None
        self.blob = corridor.store.blob_path(self.job.model.digest)
        self._bytes = self.blob.read_bytes()
        self.blob.unlink()
        os.mkfifo(self.blob)
        self.process = start_worker(SOME_PASSWORD=PASSWORD, CERTSERVE_MAX_ATTEMPTS="3")
        wake_up(corridor, self.job)
        assert wait_until(lambda: self.inspection() is not None, WAIT_S)
        template = template_of(self.process.pid)
        assert template is not None
        self.template = template
        (self.horse,) = horses_of(self.process.pid)
        (self.server,) = children_of(self.horse)
        found = self.inspection()
        assert found is not None
        self.child = found

    def inspection(self) -> int | None:
        """The child that reads the upload, once it is about to."""
        for horse in horses_of(self.process.pid):
            for server in children_of(horse):
                for child in children_of(server):
                    status = Path(f"/proc/{child}/status")
                    if status.exists() and "NoNewPrivs:\t1" in status.read_text():
                        return child
        return None

    def mend(self) -> None:
        """Let the upload be readable from now on; processes that wait for it go on waiting."""
        new = self.blob.with_suffix(".new")
        new.write_bytes(self._bytes)
        new.replace(self.blob)


@pytest.fixture
def chain(corridor: Corridor, start_worker: Start) -> Chain:
    return Chain(corridor, start_worker)


def gone(*pids: int) -> bool:
    return wait_until(lambda: all(ProcessId.of(pid) is None for pid in pids), WAIT_S)


def knows(pid: int, secret: str) -> bool:
    """Whether a process' memory or environment holds the text, wherever."""
    if secret.encode() in Path(f"/proc/{pid}/environ").read_bytes():
        return True
    with open(f"/proc/{pid}/mem", "rb", buffering=0) as memory:
        for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
            found = re.match(r"([0-9a-f]+)-([0-9a-f]+) rw", line)
            if found is None or "[v" in line:
                continue
            start, end = (int(part, 16) for part in found.groups())
            memory.seek(start)
            if secret.encode() in memory.read(end - start):
                return True
    return False


def open_files(pid: int) -> dict[int, str]:
    folder = Path(f"/proc/{pid}/fd")
    return {int(path.name): os.readlink(path) for path in folder.iterdir()}


def test_only_worker_and_horse_know_secrets(chain: Chain) -> None:
    url = chain.corridor.settings.redis_url
    assert url is not None
    for secret in (PASSWORD, str(url).removeprefix("unix://")):
        known = [
            name
            for name in ("template", "horse", "server", "child")
            if knows(getattr(chain, name), secret)
        ]
        assert known == ["horse"]


def test_no_socket_reaches_the_child(chain: Chain) -> None:
    (folder,) = chain.corridor.store.job_dir(chain.job.id).glob(".inspect-*")
    assert open_files(chain.child) == {
        0: os.devnull,
        1: str(folder / "stderr"),
        2: str(folder / "stderr"),
    }
    assert any("socket:" in target for target in open_files(chain.horse).values())
    for pid in (chain.template, chain.server):
        files = [target for at, target in open_files(pid).items() if at > 2]
        # Its child, and the socket over which it is asked.
        assert [target.partition(":")[0] for target in sorted(files)] == ["anon_inode", "socket"]
    assert len(os.listdir(f"/proc/{chain.template}/task")) == 1
    assert len(os.listdir(f"/proc/{chain.server}/task")) == 1


def test_a_killed_horse_takes_its_inspection_along(chain: Chain) -> None:
    chain.mend()
    os.kill(chain.horse, signal.SIGKILL)
    assert gone(chain.server, chain.child)
    wake_up(chain.corridor, chain.job)
    assert chain.corridor.outcome(chain.job)["status"] == "succeeded"
    assert template_of(chain.process.pid) == chain.template


def test_a_killed_worker_leaves_nothing_behind(chain: Chain) -> None:
    chain.process.kill()
    assert gone(chain.template, chain.horse, chain.server, chain.child)


@pytest.mark.parametrize("who", part(["template", "server"], 0))
def test_a_job_survives_its_template(chain: Chain, who: str) -> None:
    chain.mend()
    os.kill(getattr(chain, who), signal.SIGKILL)
    assert gone(chain.child)
    wake_up(chain.corridor, chain.job)
    assert chain.corridor.outcome(chain.job)["status"] == "succeeded"
    # The next ones come from a template again.
    second = chain.corridor.submit(attack=None)
    wake_up(chain.corridor, second)
    assert chain.corridor.outcome(second)["status"] == "succeeded"
    assert wait_until(lambda: template_of(chain.process.pid) is not None, WAIT_S)
    assert chain.process.poll() is None


def test_a_stop_of_the_horse_stops_the_inspection(chain: Chain) -> None:
    os.kill(chain.horse, signal.SIGTERM)
    assert gone(chain.child, chain.server, chain.horse)
    holders = f"certserve:job:{chain.job.id}:holder"
    assert wait_until(lambda: not chain.corridor.redis.hlen(holders), WAIT_S)


def test_nothing_is_forked_where_there_are_threads() -> None:
    """Locks that another thread holds would stay locked in the child for ever."""
    code = (
        "import socket, sys, threading\n"
        "from workers.jobs.runtime.fork_server import serve\n"
        "threading.Thread(target=threading.Event().wait, daemon=True).start()\n"
        "serve(socket.socket(fileno=int(sys.argv[1])))"
    )
    server = ForkServer.start(
        lambda descriptor: [sys.executable, "-c", code, str(descriptor)], os.environ
    )
    assert server.ready(WAIT_S)
    with pytest.raises(ForkServerLost, match="more than one thread"):
        server.fork("child", "workers.jobs.inspection.sandbox", [])
    assert not server.lost
    server.close()


def test_a_server_that_never_answers_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("workers.jobs.runtime.fork_server.ANSWER_S", 0.2)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    server = ForkServer(ours)
    assert not server.ready(0.1)
    theirs.send(b'{"ready": 1}')
    assert server.ready(WAIT_S)
    with pytest.raises(ForkServerLost):
        server.fork("child", "workers.jobs.inspection.sandbox", [])
    assert server.lost
    theirs.close()


#: A server that is held up while it is asked, and goes on when it has been given up.
LATE = """
import contextlib, os, signal, sys
from workers.jobs.runtime import fork_server
fork_server.ANSWER_S = 0.2
server = fork_server.ForkServer.beside("late", closing=[])
if not server.ready(60):
    sys.exit(3)
os.kill(server.pid, signal.SIGSTOP)
try:
    server.fork("late", "late_child", sys.argv[1:])
except fork_server.ForkServerLost:
    with contextlib.suppress(ProcessLookupError, ChildProcessError):
        os.kill(server.pid, signal.SIGCONT)
        os.waitpid(server.pid, 0)
    sys.exit(0)
"""


def test_a_server_that_was_given_up_starts_nothing_any_more(tmp_path: Path) -> None:
    """The caller does the work otherwise: a late child would do it too, in the same folder."""
    (tmp_path / "late_child.py").write_text(
        "def forked(arguments, descriptors):\n    open(arguments[0], 'w').close()\n    return 0\n"
    )
    paths = os.pathsep.join([str(tmp_path), *sys.path])
    ended = subprocess.run(
        [sys.executable, "-c", LATE, str(tmp_path / "begun")],
        env={**os.environ, "PYTHONPATH": paths},
        timeout=WAIT_S,
    )
    assert ended.returncode == 0
    assert not (tmp_path / "begun").exists()


def test_a_server_ends_when_nobody_can_ask_it_any_more() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    thread = threading.Thread(target=serve, args=(theirs,))
    thread.start()
    ours.close()
    thread.join(WAIT_S)
    assert not thread.is_alive()
    theirs.close()
