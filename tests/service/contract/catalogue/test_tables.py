"""The API's tables say what the workers can do, although the API must not import them."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

from models.architectures.families import FAMILIES as FAMILIES_BUILT
from models.architectures.published import ARCHITECTURES as BUILDABLE
from service.contract.catalogue.architectures import ARCHITECTURES, FAMILIES
from service.contract.catalogue.methods import METHODS
from workers.verification.cascade.bound_table import BOUNDS

ROOT = Path(__file__).parents[4]


def test_every_architecture_of_the_api_can_be_built_and_the_other_way_round() -> None:
    offered = {name: (row.input_shape, row.classes) for name, row in ARCHITECTURES.items()}
    buildable = {name: (row.input, row.dense[-1]) for name, row in BUILDABLE.items()}
    assert offered == buildable
    assert set(FAMILIES) == set(FAMILIES_BUILT)


def test_every_method_of_the_api_is_a_bound_with_the_same_norms() -> None:
    offered = {name: set(row.norms) for name, row in METHODS.items() if name != "auto"}
    assert offered == {name: set(bound.norms) for name, bound in BOUNDS.items()}


def test_no_module_of_the_front_end_imports_what_belongs_to_workers() -> None:
    forbidden = {"torch", "onnx", "onnxruntime", "workers", "models"}
    contract_too = forbidden | {"rq", "fastapi", "starlette", "uvicorn"}
    for path in (ROOT / "service").rglob("*.py"):
        wrong = contract_too if "contract" in path.parts else forbidden
        for node in ast.walk(ast.parse(path.read_text())):
            names: list[str] = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
            for name in names:
                assert name.partition(".")[0] not in wrong, f"{path} imports {name}"


def test_the_api_starts_without_torch() -> None:
    code = "import sys, service.api.app; assert not {'torch', 'onnx', 'sklearn'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
