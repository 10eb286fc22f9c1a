"""docs/inputs.md says what the tables say, and its examples are taken."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from models.architectures.layer_lists import blueprint_of
from models.architectures.layer_makers import KINDS
from models.onnx.documentation import BEGIN, END, main, tables, with_tables
from models.onnx.importer import SUPPORTED_OPERATORS
from service.contract.array_names import ARRAY_NAMES

PAGE = Path(__file__).resolve().parents[4] / "docs" / "inputs.md"


def test_the_page_is_what_make_docs_writes(tmp_path: Path) -> None:
    text = PAGE.read_text()
    assert with_tables(text) == text, "make docs"
    copy = tmp_path / "inputs.md"
    copy.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    assert main([str(copy)]) == 0
    assert copy.read_text() == f"before\n{BEGIN}\n\n{tables()}\n\n{END}\nafter\n"
    assert main([str(tmp_path / "missing.md")]) == 1
    with pytest.raises(ValueError, match="there is no"):
        with_tables("no place for them")


def test_every_operator_layer_and_array_name_is_on_the_page() -> None:
    text = PAGE.read_text()
    names = [*SUPPORTED_OPERATORS, *KINDS, *ARRAY_NAMES]
    assert not [name for name in names if f"`{name}`" not in text]
    assert not [row for row in tables().splitlines() if row.startswith("| `") and "|  |" in row]


def test_its_layer_list_is_one() -> None:
    text = PAGE.read_text().partition("## Layer lists")[2]
    example = text[text.index("{") : text.index("\n\nEach layer")]
    assert blueprint_of(json.loads(example)).skeleton.classes == 10
