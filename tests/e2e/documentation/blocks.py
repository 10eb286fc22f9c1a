"""Blocks of code in a page of documentation, and the commands in them."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from textwrap import dedent

__all__ = ["Block", "blocks_of", "statements"]

#: What a line of a shell begins with; anything else in a block is an answer or a piece of JSON.
_PROGRAMS = re.compile(
    r"(\$ |curl |certserve |certserve-check |\.venv/bin/|python -m |make |docker|pip |export "
    r"|mkdir |for \w+ in "
    r"|[A-Z_]+=\S+ *\S*)"
)


@dataclass(frozen=True)
class Block:
    """Lines that are set off by four or more blanks, without them."""

    page: str
    line: int
    text: str

    @property
    def language(self) -> str:
        """``shell``, ``python``, or ``data``: what is shown and not run."""
        first = next(line for line in self.text.splitlines() if not line.startswith("#"))
        if _PROGRAMS.match(first):
            return "shell"
        try:
            tree = ast.parse(self.text)
        except SyntaxError:
            return "data"
        does = (ast.Import, ast.ImportFrom, ast.Assign, ast.With)
        calls = any(
            isinstance(node, ast.Expr) and isinstance(node.value, ast.Call) for node in tree.body
        )
        return "python" if calls or any(isinstance(node, does) for node in tree.body) else "data"


def blocks_of(page: Path) -> Iterator[Block]:
    """The blocks of a page in their order; drawings are blocks too."""
    found: list[str] = []
    began, empty = 0, True
    for number, line in enumerate([*page.read_text().splitlines(), ""], 1):
        inside = line.startswith("    ") and (found or empty)
        if inside or (found and not line.strip()):
            began = began if found else number
            found.append(line)
        elif found:
            yield Block(page.name, began, dedent("\n".join(found)).strip())
            found = []
        empty = not line.strip()
    if found:
        yield Block(page.name, began, dedent("\n".join(found)).strip())


def statements(text: str) -> Iterator[str]:
    """The commands of a shell block, each with the lines that belong to it.

    Of a block with prompts those behind a prompt; what begins with no known program is an answer.
    """
    joined = re.sub(r"\s*\\\n\s*", " ", text)
    # A quoted text may go on in the next line.
    joined = re.sub(r"'[^']*'", lambda found: found[0].replace("\n", " "), joined)
    lines = joined.splitlines()
    prompts = [line[2:] for line in lines if line.startswith("$ ")]
    for line in prompts or lines:
        command = re.sub(r"\s#\s.*$", "", line).strip()
        if _PROGRAMS.match(command):
            apart = command.startswith("certserve") and ";" in command
            yield from (part.strip() for part in (command.split(";") if apart else [command]))
