"""Secrets as files, the way containers get them; and the health check of a worker's container."""

from __future__ import annotations

import platform
import stat
from pathlib import Path

import pytest

from service.cli import main
from service.contract.ledger.ledger import Ledger
from service.contract.settings import Settings
from service.supervisor.instance_lock import running_service
from service.supervisor.supervisor import Supervisor
from tests.service.conftest import RedisServer
from workers.jobs.runtime import health_check


@pytest.fixture
def url_file(tmp_path: Path, redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "redis_url"
    path.write_text(redis_server.url + "\n")
    monkeypatch.delenv("CERTSERVE_REDIS_URL", raising=False)
    monkeypatch.setenv("CERTSERVE_REDIS_URL_FILE", str(path))
    return path


def test_secrets_are_read_from_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "url").write_text("redis://:pass@redis:6379/0\n")
    (tmp_path / "keys").write_text("admin=0123456789abcdef\nbuild=fedcba9876543210\n")
    monkeypatch.setenv("CERTSERVE_REDIS_URL_FILE", str(tmp_path / "url"))
    monkeypatch.setenv("CERTSERVE_KEYS_FILE", str(tmp_path / "keys"))
    monkeypatch.delenv("CERTSERVE_REDIS_URL", raising=False)
    settings = Settings()
    assert settings.redis_url == "redis://:pass@redis:6379/0"
    keys = [key.get_secret_value() for key in settings.keys]
    assert keys == ["admin=0123456789abcdef", "build=fedcba9876543210"]
    assert "0123456789abcdef" not in repr(settings)
    monkeypatch.setenv("CERTSERVE_REDIS_URL", "redis://other")
    assert Settings().redis_url == "redis://other"
    assert Settings(redis_url="redis://given").redis_url == "redis://given"


@pytest.mark.parametrize("content", ["", " \n", None])
def test_a_secret_file_that_says_nothing_stops_the_start(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    content: str | None,
) -> None:
    """Above all the API must not start without the keys that it was meant to have."""
    path = tmp_path / "keys"
    if content is not None:
        path.write_text(content)
    monkeypatch.setenv("CERTSERVE_KEYS_FILE", str(path))
    assert main.main(["serve", "--data-dir", str(tmp_path / "data")]) == 2
    assert str(path) in capsys.readouterr().err


def test_worker_finds_its_redis_in_the_file(
    url_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[dict[str, str]] = []
    monkeypatch.setattr("os.execve", lambda path, command, env: started.append(env))
    main.main(["worker", "--data-dir", str(tmp_path / "data")])
    assert started[0]["CERTSERVE_REDIS_URL_FILE"] == str(url_file)
    assert "CERTSERVE_REDIS_URL" not in started[0]


def test_supervisor_tells_the_address_from_the_file(
    url_file: Path, tmp_path: Path, redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    data_dir = tmp_path / "data"
    supervisor = Supervisor(
        data_dir=data_dir, host="127.0.0.1", port=0, workers=0, settings=Settings()
    )
    told: list[dict[str, str] | None] = []

    def look_and_stop() -> None:
        told.append(running_service(data_dir))
        mode = (data_dir / "run" / "service.json").stat().st_mode
        assert stat.S_IMODE(mode) == 0o600
        supervisor._stop = True

    monkeypatch.setattr(supervisor, "_tend", look_and_stop)
    monkeypatch.setattr("signal.signal", lambda *arguments: None)
    assert supervisor.run() == 0
    assert told[0] is not None
    assert told[0]["redis_url"] == redis_server.url


def test_a_worker_is_alive_while_its_host_sends_heartbeats(
    ledger: Ledger, url_file: Path, redis_server: RedisServer, capsys: pytest.CaptureFixture[str]
) -> None:
    assert health_check.main() == 1
    ledger.worker_registry.heartbeat("w1", {"host": "elsewhere"})
    assert health_check.main() == 1
    ledger.worker_registry.heartbeat("w2", {"host": platform.node()})
    assert health_check.main() == 0
    ledger.worker_registry.deregister("w2")
    assert health_check.main() == 1
    assert "no worker" in capsys.readouterr().err
    redis_server.kill()
    assert health_check.main() == 1
    assert "cannot ask Redis" in capsys.readouterr().err
