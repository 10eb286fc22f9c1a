"""``certserve doctor``: what is missing on this machine, and how to mend it; and ``version``."""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

import httpx
from pydantic import ValidationError
from redis import Redis, RedisError
from rich.console import Console

from service.cli.exit_status import NO, YES
from service.cli.remote.connection import show_json, show_table
from service.cli.settings_check import explain, unknown_settings
from service.contract.settings import Settings
from service.contract.version import engine_version
from service.supervisor.embedded_redis import RedisServerError, find_binary
from service.supervisor.instance_lock import running_service

__all__ = ["Finding", "add_parser", "findings"]

#: Packages that a worker computes with; the service alone runs without them.
COMPUTING = ("torch", "onnx", "onnxruntime", "scipy", "safetensors", "highspy")
#: Free bytes below which a data directory will not last.
LITTLE_DISK = 2 * 2**30
#: Memory below which the inspection of an upload and a worker do not fit side by side.
LITTLE_MEMORY = 4 * 2**30

#: Run apart, because the service itself imports no torch: devices, and what runs ONNX files.
_DEVICES = """
import json, onnxruntime, torch
names = [torch.cuda.get_device_name(k) for k in range(torch.cuda.device_count())]
print(json.dumps({"gpus": names, "providers": onnxruntime.get_available_providers()}))
"""


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at; ``mend``: what to do, where it is not ``ok``."""

    what: str
    state: Literal["ok", "warning", "missing"]
    found: str
    mend: str = ""


def add_parser(commands: Any) -> None:
    """Add ``doctor`` and ``version`` to the commands."""
    doctor = commands.add_parser("doctor", help="say what is missing here, and how to mend it")
    doctor.add_argument("--json", action="store_true")
    doctor.set_defaults(run=_doctor)
    shown = commands.add_parser("version", help="print the versions of what computes")
    shown.add_argument("--json", action="store_true")
    shown.set_defaults(run=_version)


def _doctor(options: argparse.Namespace, console: Console) -> int:
    found = list(findings())
    if options.json:
        show_json([asdict(finding) for finding in found])
    else:
        rows = [(row.what, row.state, row.found, row.mend) for row in found]
        show_table(console, ("", "", "found", "what to do"), rows)
    return NO if any(finding.state == "missing" for finding in found) else YES


def _version(options: argparse.Namespace, console: Console) -> int:
    versions = {
        "certserve": engine_version(),
        "python": platform.python_version(),
        **{name: _installed(name) or "not installed" for name in COMPUTING},
    }
    if options.json:
        return show_json(versions)
    for name, text in versions.items():
        print(f"{name} {text}")
    return 0


def findings() -> Iterator[Finding]:
    """Look at everything, one after the other."""
    yield _python()
    for name in COMPUTING:
        yield _package(name)
    try:
        settings = Settings()
    except (ValidationError, OSError) as error:
        told = explain(error) if isinstance(error, ValidationError) else str(error)
        yield Finding("settings", "missing", told, "correct the variables named")
        return
    yield _settings()
    looks: tuple[Callable[[Settings], Finding], ...] = (
        *(_processors, _memory, _data_dir, _redis),
        *(_data_sources, _access, _devices, _service),
    )
    for look in looks:
        yield look(settings)


def _python() -> Finding:
    found = platform.python_version()
    if (3, 11) <= sys.version_info[:2] <= (3, 12):
        return Finding("Python", "ok", found)
    return Finding("Python", "warning", found, "certserve is tested with Python 3.11 and 3.12")


def _installed(name: str) -> str | None:
    # onnxruntime-gpu is the same module by another name.
    for candidate in (name, f"{name}-gpu"):
        try:
            return version(candidate)
        except PackageNotFoundError:
            continue
    return None


def _package(name: str) -> Finding:
    found = _installed(name)
    if found is not None:
        return Finding(name, "ok", found)
    return Finding(name, "missing", "not installed", f"pip install {name} (make install does all)")


def _settings() -> Finding:
    odd = unknown_settings()
    if odd:
        return Finding("settings", "warning", "; ".join(odd), "correct or remove the variables")
    return Finding("settings", "ok", "read")


def _processors(settings: Settings) -> Finding:
    count = len(os.sched_getaffinity(0))
    used = settings.worker_threads
    if used > count:
        mend = f"lower CERTSERVE_WORKER_THREADS to {count}"
        return Finding("processors", "warning", f"{count}, a worker uses {used}", mend)
    return Finding("processors", "ok", str(count))


def _memory(settings: Settings) -> Finding:
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    found = f"{total / 2**30:.1f} GiB"
    if total < LITTLE_MEMORY:
        return Finding("memory", "warning", found, "large uploads will be refused: 4 GiB is little")
    return Finding("memory", "ok", found)


def _data_dir(settings: Settings) -> Finding:
    folder = settings.data_dir.absolute()
    nearest = next(path for path in (folder, *folder.parents) if path.exists())
    free = shutil.disk_usage(nearest).free
    found = f"{folder}, {free / 2**30:.1f} GiB free"
    if not nearest.is_dir() or not os.access(nearest, os.W_OK | os.X_OK):
        mend = f"make {nearest} writable for this user, or set CERTSERVE_DATA_DIR"
        return Finding("data directory", "missing", f"{nearest} is not writable", mend)
    if free < max(LITTLE_DISK, settings.min_free_bytes):
        return Finding("data directory", "warning", found, "free some space: uploads and results")
    return Finding("data directory", "ok", found)


def _redis(settings: Settings) -> Finding:
    if settings.redis_url is None:
        try:
            return Finding("Redis", "ok", f"embedded, {find_binary()}")
        except RedisServerError as error:
            return Finding("Redis", "missing", "no server found", str(error))
    try:
        with Redis.from_url(
            settings.redis_url, socket_timeout=3, socket_connect_timeout=3
        ) as redis:
            redis.ping()
    except (RedisError, OSError, ValueError) as error:
        # The address may hold a password.
        mend = "start it, or correct CERTSERVE_REDIS_URL"
        return Finding("Redis", "missing", f"no answer ({type(error).__name__})", mend)
    return Finding("Redis", "ok", "answers at CERTSERVE_REDIS_URL")


def _data_sources(settings: Settings) -> Finding:
    lost = [str(path) for path in settings.data_sources if not path.is_dir()]
    if lost:
        mend = "correct CERTSERVE_DATA_SOURCES"
        return Finding("data sources", "warning", f"no such folder: {', '.join(lost)}", mend)
    if not settings.data_sources:
        mend = "CERTSERVE_DATA_SOURCES=/folder for the registered names mnist, cifar10, ..."
        return Finding("data sources", "ok", "none: uploads and digits only", mend)
    return Finding("data sources", "ok", ", ".join(map(str, settings.data_sources)))


def _access(settings: Settings) -> Finding:
    loopback = settings.host in ("127.0.0.1", "::1", "localhost")
    keys = bool(settings.keys) or any((settings.data_dir / "keys").glob("*.json"))
    if keys:
        return Finding("access", "ok", "API keys are configured")
    if loopback:
        return Finding("access", "ok", "no keys: this machine alone may connect")
    mend = "certserve keys create NAME, or CERTSERVE_KEYS"
    return Finding("access", "missing", f"no keys, but the address is {settings.host}", mend)


def _devices(settings: Settings) -> Finding:
    try:
        ended = subprocess.run(
            [sys.executable, "-c", _DEVICES], capture_output=True, text=True, timeout=120
        )
        answer = json.loads(ended.stdout.splitlines()[-1])
    except (OSError, subprocess.TimeoutExpired, ValueError, IndexError):
        mend = "run: python -c 'import torch, onnxruntime'"
        return Finding("devices", "missing", "torch or ONNX Runtime cannot be imported", mend)
    if answer["gpus"]:
        return Finding("devices", "ok", ", ".join(answer["gpus"]))
    if settings.device == "cuda" or shutil.which("nvidia-smi") is not None:
        mend = "install a CUDA build of torch, and onnxruntime-gpu; in a container: --gpus all"
        state: Literal["missing", "warning"] = "missing" if settings.device == "cuda" else "warning"
        return Finding("devices", state, "torch sees no GPU", mend)
    return Finding("devices", "ok", "CPU")


def _service(settings: Settings) -> Finding:
    running = running_service(settings.data_dir)
    if running is None:
        return Finding("service", "ok", "none runs on the data directory", "certserve serve")
    try:
        answer = httpx.get(f"{running['url']}/readyz", timeout=10, trust_env=False)
    except httpx.HTTPError as error:
        mend = f"look at {Path(settings.data_dir) / 'log'}"
        return Finding("service", "missing", f"no answer ({type(error).__name__})", mend)
    if answer.status_code == 200:
        return Finding("service", "ok", f"ready at {running['url']}")
    told = str(answer.json().get("detail", answer.status_code))
    return Finding("service", "missing", told, f"look at {Path(settings.data_dir) / 'log'}")
