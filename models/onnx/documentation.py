"""The tables of ONNX operators in docs/inputs.md, made from the importer's own tables.

They stand between two comments that Markdown does not show; ``python -m models.onnx.documentation``
writes them anew (``make docs``), and a test compares.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterable
from pathlib import Path

from models.onnx.constant_rules import CONSTANT_OPERATORS
from models.onnx.forms.endings import FINAL_OPERATORS
from models.onnx.operators.euclidean import SQUARE_OPERATORS
from models.onnx.operators.registry import OPERATORS, UNBATCHED
from models.onnx.safety import OPSETS

__all__ = ["BEGIN", "END", "main", "tables", "with_tables"]

BEGIN = "<!-- made from models/onnx by `make docs`: begin -->"
END = "<!-- end -->"


def tables() -> str:
    """Opsets and operators as Markdown."""
    rows = [f"| `{name}` | {_sentence(row)} |" for name, row in OPERATORS.items()]
    return "\n".join(
        [
            f"Opsets {OPSETS[0]} to {OPSETS[-1]} of the default domain.",
            "",
            "| operator | what is taken |",
            "|---|---|",
            *rows,
            "",
            f"At the very end, where they are left out: {_listed(FINAL_OPERATORS)}, and a Sigmoid "
            "behind one score.",
            "",
            "On constants alone, computed by ONNX Runtime at import: "
            f"{_listed(['Shape', *CONSTANT_OPERATORS])}.",
            "",
            "Between squares and the root of their sum (Euclidean norms): "
            f"{_listed(SQUARE_OPERATORS)}.",
            "",
            f"On an input without a batch axis: {_listed(UNBATCHED)}.",
        ]
    )


def _listed(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in sorted(names))


def _sentence(translator: object) -> str:
    """The first paragraph of what an operator's translator says of itself."""
    text = (inspect.getdoc(translator) or "").partition("\n\n")[0]
    return " ".join(text.split()).replace("|", "\\|")


def with_tables(text: str) -> str:
    """``text`` with the tables between the two comments. Raises ValueError where one is missing."""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"there is no {END if begin else BEGIN}")
    return f"{before}{begin}\n\n{tables()}\n\n{end}{after}"


def main(arguments: list[str]) -> int:
    """Write the file's tables anew: exit status 0, or 1 where it has no place for them."""
    path = Path(arguments[0] if arguments else "docs/inputs.md")
    try:
        path.write_text(with_tables(path.read_text()))
    except (OSError, ValueError) as error:
        print(f"{path}: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
