"""The supervisor's edges: long paths, ports in use, hosts, binaries, process identities."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from service.cli.main import main
from service.contract.processes import ProcessId, end_process, spawn, wait_until
from service.supervisor import embedded_redis
from service.supervisor.embedded_redis import RedisServerError, find_binary, repair, socket_path
from service.supervisor.instance_lock import running_service
from service.supervisor.supervisor import is_loopback


def test_a_long_data_directory_gets_a_short_private_socket(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    data_dir = tmp_path / ("x" * 120)
    path = socket_path(data_dir)
    assert len(os.fsencode(path)) <= embedded_redis.SOCKET_PATH_LIMIT
    assert path == socket_path(data_dir)
    assert path.parent.stat().st_mode & 0o777 == 0o700


def test_a_foreign_socket_folder_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    data_dir = tmp_path / ("x" * 120)
    folder = socket_path(data_dir).parent
    folder.rmdir()
    folder.symlink_to(tmp_path)
    with pytest.raises(RedisServerError):
        socket_path(data_dir)


def test_no_binary_is_a_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded_redis, "_candidates", lambda: iter(()))
    with pytest.raises(RedisServerError, match="apt install redis-server"):
        find_binary()


def test_an_old_binary_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = tmp_path / "redis-server"
    old.write_text("#!/bin/sh\necho 'Redis server v=6.0.16 sha=0'\n")
    old.chmod(0o755)
    monkeypatch.setattr(embedded_redis, "_candidates", lambda: iter([old]))
    with pytest.raises(RedisServerError):
        find_binary()


def test_repair_leaves_healthy_files_alone(tmp_path: Path) -> None:
    folder = tmp_path / "redis"
    folder.mkdir()
    healthy = b"*2\r\n$6\r\nSELECT\r\n$1\r\n0\r\n*3\r\n$3\r\nSET\r\n$1\r\na\r\n$1\r\nb\r\n"
    aof = folder / "appendonly.aof"
    aof.write_bytes(healthy)
    assert repair(find_binary(), tmp_path) == []
    aof.write_bytes(healthy + b"garbage" + healthy)
    (copy,) = repair(find_binary(), tmp_path)
    assert copy.read_bytes() == healthy + b"garbage" + healthy
    assert aof.read_bytes() == healthy


@pytest.mark.parametrize(
    ("host", "loopback"),
    [("127.0.0.1", True), ("::1", True), ("localhost", True), ("0.0.0.0", False), ("a.b", False)],
)
def test_is_loopback(host: str, loopback: bool) -> None:
    assert is_loopback(host) is loopback


def test_other_binds_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", "--host", "0.0.0.0", "--data-dir", str(tmp_path)]) == 2
    assert "loopback" in capsys.readouterr().err


def test_a_port_in_use_is_a_clear_error(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        ended = subprocess.run(
            [
                sys.executable,
                "-m",
                "service.cli.main",
                "serve",
                "--port",
                port,
                "--data-dir",
                tmp_path,
            ],
            capture_output=True,
            text=True,
            timeout=150,
        )
    assert ended.returncode == 2
    assert f"cannot listen on 127.0.0.1:{port}" in ended.stderr
    assert running_service(tmp_path) is None


def test_a_pid_that_belongs_to_somebody_else_is_not_ours(tmp_path: Path) -> None:
    me = ProcessId.of(os.getpid())
    assert me is not None
    assert me.alive
    stale = ProcessId(me.pid, me.started - 1, me.host)
    assert not stale.alive
    assert end_process(stale, patience_s=0)
    me.write(tmp_path / "a.pid")
    assert ProcessId.read(tmp_path / "a.pid") == me
    (tmp_path / "a.pid").write_text("{")
    assert ProcessId.read(tmp_path / "a.pid") is None


def test_end_process_kills_what_ignores_the_polite_signal() -> None:
    code = "import signal, time; signal.signal(15, signal.SIG_IGN); print(1, flush=True)\n"
    code += "time.sleep(60)"
    child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    assert child.stdout is not None
    child.stdout.readline()
    identity = ProcessId.of(child.pid)
    assert identity is not None
    assert end_process(identity, patience_s=0.3)
    assert child.wait(60) == -signal.SIGKILL
    child.stdout.close()


def test_children_die_with_their_parent(tmp_path: Path) -> None:
    code = (
        "import sys, time; from service.contract.processes import spawn\n"
        "print(spawn([sys.executable, '-c', 'import time; time.sleep(60)']).pid, flush=True)\n"
        "time.sleep(60)"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    assert parent.stdout is not None
    child = ProcessId.of(int(parent.stdout.readline()))
    assert child is not None
    parent.kill()
    parent.wait()
    parent.stdout.close()
    assert wait_until(lambda: not child.alive, 50)


def test_spawned_children_have_their_own_group() -> None:
    child = spawn([sys.executable, "-c", "import time; time.sleep(60)"])
    assert os.getpgid(child.pid) == child.pid
    child.kill()
    child.wait()
