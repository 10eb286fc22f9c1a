"""The plan of the house: who imports whom, no circles, no crowded folder, a light API."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("service", "workers", "models", "check")

#: A room -> what of ours it may import beside itself; the longest name that fits counts.
MAY_IMPORT: dict[str, tuple[str, ...]] = {
    "service.contract": (),
    "service.client": (),
    "service.recipes": ("service.contract",),
    "service.access": ("service.contract",),
    "service.reports": ("service.contract",),
    "service.uploads": ("service.contract", "service.access"),
    "service.webhooks": ("service.contract", "service.access", "service.jobs"),
    "service.jobs": (
        "service.contract",
        "service.access",
        "service.recipes",
        "service.reports",
        "service.webhooks",
    ),
    "service.api": (
        "service.contract",
        "service.access",
        "service.jobs",
        "service.recipes",
        "service.reports",
        "service.uploads",
        "service.webhooks",
    ),
    "service.console": (
        "service.contract",
        "service.access",
        "service.api",
        "service.jobs",
        "service.recipes",
        "service.reports",
        "service.uploads",
        "service.webhooks",
    ),
    "service.supervisor": ("service.contract",),
    "service.cli": (
        "service.contract",
        "service.access",
        "service.client",
        "service.recipes",
        "service.reports",
        "service.supervisor",
    ),
    # ``service`` alone: where the packages lie is told to the children.
    "workers.jobs": (
        "service",
        "service.contract",
        "workers.verification",
        "workers.training",
        "models",
        "check",
    ),
    "workers.training": ("workers.verification", "models"),
    "workers.verification": ("models",),
    "models": (),
    "check": (),
}

WORKERS_ONLY = {"torch", "onnx", "onnxruntime", "sklearn", "scipy", "highspy", "workers", "models"}
HTTP = {"rq", "fastapi", "starlette", "uvicorn", "httpx"}
#: A room -> what it must not import of others.
FORBIDDEN: dict[str, set[str]] = {
    "service": WORKERS_ONLY,
    "service.contract": WORKERS_ONLY | HTTP,
    "workers.verification": HTTP | {"redis"},
    "workers.training": HTTP | {"redis"},
    "models": HTTP | {"redis"},
}
MODULES_PER_FOLDER = 12


def modules() -> dict[str, Path]:
    """Every module of ours by its dotted name."""
    found = {}
    for package in PACKAGES:
        for path in (ROOT / package).rglob("*.py"):
            name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
            found[name.removesuffix(".__init__")] = path
    return found


MODULES = modules()


def imports(path: Path) -> Iterator[tuple[str, bool]]:
    """(what a file imports, whether that happens when the file itself is imported)."""
    tree = ast.parse(path.read_text())
    at_once = {id(node) for node in tree.body}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, id(node) in at_once
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                yield (full if full in MODULES else str(node.module)), id(node) in at_once


def belongs(name: str, room: str) -> bool:
    return name == room or name.startswith(f"{room}.")


def room_of(name: str) -> str | None:
    return max((room for room in MAY_IMPORT if belongs(name, room)), key=len, default=None)


def test_every_module_is_in_a_room() -> None:
    outside = {name for name in MODULES if room_of(name) is None}
    assert outside == {"service", "workers"}


@pytest.mark.parametrize("room", MAY_IMPORT)
def test_imports_go_one_way_also_inside_functions(room: str) -> None:
    for name, path in MODULES.items():
        if room_of(name) != room:
            continue
        for target, _ in imports(path):
            if target.partition(".")[0] not in PACKAGES or belongs(target, room):
                continue
            allowed = any(
                target == other or (other != "service" and belongs(target, other))
                for other in MAY_IMPORT[room]
            )
            assert allowed, f"{name} imports {target}"


@pytest.mark.parametrize("room", FORBIDDEN)
def test_rooms_import_nothing_that_they_must_do_without(room: str) -> None:
    for name, path in MODULES.items():
        if belongs(name, room):
            for target, _ in imports(path):
                assert target.partition(".")[0] not in FORBIDDEN[room], f"{name} imports {target}"


def test_the_checker_needs_numpy_alone_and_is_short() -> None:
    """onnx, which it asks for where a model is to be compared, is imported there and then."""
    allowed, lines = {*sys.stdlib_module_names, "numpy", "check"}, 0
    for name, path in MODULES.items():
        if not belongs(name, "check"):
            continue
        lines += len(path.read_text().splitlines())
        for target, _ in imports(path):
            package = target.partition(".")[0]
            assert package in allowed or (name, package) == ("check.verify", "onnx"), target
    assert 0 < lines < 1075


def test_only_the_notifier_of_the_service_speaks_to_rq() -> None:
    users = {
        name
        for name, path in MODULES.items()
        if belongs(name, "service") and any(t.partition(".")[0] == "rq" for t, _ in imports(path))
    }
    assert users == {"service.jobs.notifier"}


def test_no_module_imports_itself_by_a_detour() -> None:
    graph = {
        name: {target for target, at_once in imports(path) if at_once and target in MODULES}
        for name, path in MODULES.items()
    }
    assert list(TopologicalSorter(graph).static_order())  # CycleError names the circle


def test_folders_hold_at_most_a_dozen_modules() -> None:
    ours = {path.parent for path in MODULES.values()}
    others = {
        path.parent for name in ("tests", "benchmarks") for path in (ROOT / name).rglob("*.py")
    }
    for path in ours | others:
        files = [file for file in path.glob("*.py") if file.name != "__init__.py"]
        assert len(files) <= MODULES_PER_FOLDER, f"{path.relative_to(ROOT)}: {len(files)} modules"


def test_resources_lie_beside_the_module_that_reads_them() -> None:
    for path in ROOT.glob("service/**/*.lua"):
        readers = [
            file for file in path.parents[1].glob("*.py") if f'"{path.stem}' in file.read_text()
        ]
        assert readers, f"nobody in {path.parents[1]} runs {path.name}"


def test_no_test_is_imported() -> None:
    """What tests share lies in harness files beside them."""
    for folder in ("tests", "benchmarks"):
        for path in (ROOT / folder).rglob("*.py"):
            for target, _ in imports(path):
                assert ".test_" not in target, f"{path.relative_to(ROOT)} imports {target}"
