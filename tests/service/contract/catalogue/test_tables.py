"""The API's tables say what the workers can do, although the API must not import them."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

from models.architectures import layer_lists
from models.architectures.families import DENSE_HEADS
from models.architectures.families import FAMILIES as FAMILIES_BUILT
from models.architectures.layer_makers import KINDS
from models.architectures.layer_rows import LayerRow
from models.architectures.lipconvnet import HEADS, LAYERS, POOLS
from models.architectures.published import ARCHITECTURES as BUILDABLE
from models.errors import ModelError
from service.contract.catalogue.architectures import ARCHITECTURES, CHOICES, FAMILIES
from service.contract.catalogue.layer_kinds import INITS, JOINING, LAYER_KINDS
from service.contract.catalogue.methods import METHODS
from service.contract.catalogue.readme import BEGIN, END, tables, with_tables
from service.contract.catalogue.training_methods import TRAINING_METHODS
from workers.training.objectives import OBJECTIVES
from workers.verification.cascade.bound_table import BOUNDS, Bound

ROOT = Path(__file__).parents[4]


def test_every_architecture_of_the_api_can_be_built_and_the_other_way_round() -> None:
    offered = {name: (row.input_shape, row.classes) for name, row in ARCHITECTURES.items()}
    buildable = {name: (row.input, row.dense[-1]) for name, row in BUILDABLE.items()}
    assert offered == buildable
    assert set(FAMILIES) == set(FAMILIES_BUILT)
    words = {"head": tuple(HEADS), "layer": tuple(LAYERS), "pooling": tuple(POOLS)}
    assert {"lipconvnet": words, "orthogonal-dense": {"head": tuple(DENSE_HEADS)}} == CHOICES
    assert set(words) <= set(FAMILIES["lipconvnet"])


#: What a member of some form may be, and a shape that every kind of layer takes one of.
VALUES = {"integer": 2, "sizes": [2], "number": 0.5, "numbers": [0.5], "boolean": True}
SHAPES = ((2, 4, 4), (4,))


def made(kind: str, members: dict[str, object]) -> set[str]:
    """The members that the layer of this kind reads. Raises ModelError."""
    for shape in SHAPES:
        row = LayerRow(0, {"kind": kind, **members})
        try:
            KINDS[kind](row, shape)
        except ModelError:
            if shape is SHAPES[-1]:
                raise
        else:
            return row.known - {"kind", "name", "from"}
    raise AssertionError


def test_every_kind_of_layer_is_checked_by_the_members_that_it_has() -> None:
    assert set(LAYER_KINDS) == set(KINDS)
    assert (INITS, JOINING) == (layer_lists.INITS, layer_lists.JOINING)
    own = {"kernel": 3, "half": "first", "degree": 8, "axes": [0], "stop": 2, "axis": 0}
    own |= {"low": -1.0, "channels": 8, "groups": 2, "rank": 1, "order": 1, "start": 0}
    own |= {"padding": 1, "approximate": "tanh", "exponent": 2}
    for kind, members in LAYER_KINDS.items():
        given = {name: own.get(name, VALUES.get(row.form)) for name, row in members.items()}
        assert made(kind, given) == set(members), kind
        needed = {name for name, row in members.items() if row.required}
        without: set[str] = set()
        for name in members:
            rest = {key: value for key, value in given.items() if key != name}
            try:
                made(kind, rest)
            except ModelError:
                without.add(name)
        assert without == needed, kind


def test_every_method_of_the_api_is_a_bound_with_the_same_norms() -> None:
    offered = {name: set(row.norms) for name, row in METHODS.items() if name != "auto"}
    assert offered == {name: set(bound.norms) for name, bound in BOUNDS.items()}


def passes_of(bound: Bound) -> float:
    """What the cascade's work budget counts."""
    return bound.expected_passes


def test_every_methods_cost_is_what_the_work_budget_counts() -> None:
    said = {name: row.expected_passes for name, row in METHODS.items() if name != "auto"}
    assert said == {name: passes_of(bound) for name, bound in BOUNDS.items()}
    assert METHODS["auto"].expected_passes is None
    for row in METHODS.values():
        assert row.expected_passes is None or f"{row.expected_passes:,.0f}" in row.cost


def test_every_method_says_whether_its_bound_may_draw_at_random() -> None:
    certain = {name for name, bound in BOUNDS.items() if getattr(bound, "randomized", None) is None}
    assert {name for name, row in METHODS.items() if row.deterministic} == certain


def test_every_training_method_is_an_objective_and_is_certified_by_a_method() -> None:
    assert set(TRAINING_METHODS) == set(OBJECTIVES)
    for row in TRAINING_METHODS.values():
        assert row.certify_with["method"] in METHODS


def test_the_readme_has_the_tables_of_the_rows() -> None:
    text = (ROOT / "README.md").read_text()
    assert with_tables(text) == text, "make docs"
    for name in (*METHODS, *TRAINING_METHODS):
        assert f"| `{name}` |" in tables()


def test_tables_are_written_between_the_comments_alone(tmp_path: Path) -> None:
    path = tmp_path / "README.md"
    command = [sys.executable, "-m", "service.contract.catalogue", str(path)]
    path.write_text(f"above\n{BEGIN}\nold\n{END}\nbelow\n")
    subprocess.run(command, check=True, cwd=ROOT)
    assert path.read_text() == f"above\n{BEGIN}\n\n{tables()}\n\n{END}\nbelow\n"
    path.write_text("nowhere")
    refused = subprocess.run(command, check=False, cwd=ROOT, capture_output=True, text=True)
    assert (refused.returncode, path.read_text()) == (1, "nowhere")
    assert BEGIN in refused.stderr


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
