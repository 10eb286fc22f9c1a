"""VNN-LIB text as a stream of tokens and of commands: no recursion, everything bounded.

A command comes as the sequence of its tokens, so that a file of any size is held one command at a
time. Nothing here knows what a word means.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from workers.verification.properties.errors import PropertyError

__all__ = ["MAX_BYTES", "MAX_DEPTH", "Token", "commands"]

#: Bytes of a file, parentheses within each other, characters of one word, tokens of one file.
MAX_BYTES, MAX_DEPTH, MAX_WORD, MAX_TOKENS = 64 * 2**20, 64, 1000, 20_000_000

#: Blanks, a comment, a parenthesis, an element of a tensor (2.0), a word.
_TOKEN = re.compile(r"[ \t\r\n\f]+|;[^\n]*|([()])|(\[[0-9,\s]*\])|([^\s()\[\];\"|]+)", re.ASCII)

#: (text, line): ``(``, ``)``, a word, or ``[...]`` without blanks.
Token = tuple[str, int]


def commands(text: str) -> Iterator[list[Token]]:
    """The tokens of one command after the other, outer parentheses included.

    Raises PropertyError: ``invalid_vnnlib`` for characters outside the language and unbalanced
    parentheses, ``property_too_large`` beyond the limits.
    """
    command: list[Token] = []
    depth = 0
    for token in _tokens(text):
        word, line = token
        if not depth and word != "(":
            raise invalid(line, f"a command begins with '(', not {word[:40]!r}")
        depth += {"(": 1, ")": -1}.get(word, 0)
        if depth > MAX_DEPTH:
            raise PropertyError(
                "property_too_large", f"line {line}: more than {MAX_DEPTH} parentheses are open"
            )
        command.append(token)
        if not depth:
            yield command
            command = []
    if depth:
        raise invalid(command[0][1], f"{depth} of the parentheses opened from here on stay open")


def invalid(line: int, message: str) -> PropertyError:
    """The error for a text that is no VNN-LIB."""
    return PropertyError("invalid_vnnlib", f"line {line}: {message}")


def _tokens(text: str) -> Iterator[Token]:
    if len(text) > MAX_BYTES:
        raise PropertyError("property_too_large", f"the file has more than {MAX_BYTES} characters")
    line, place, count = 1, 0, 0
    while place < len(text):
        found = _TOKEN.match(text, place)
        if found is None:
            raise invalid(line, f"{text[place : place + 20]!r} does not belong to VNN-LIB")
        place = found.end()
        word = found[1] or found[2] or found[3]
        if word is not None:
            count += 1
            if len(word) > MAX_WORD or count > MAX_TOKENS:
                raise PropertyError(
                    "property_too_large",
                    f"line {line}: a word of more than {MAX_WORD} characters, or more than "
                    f"{MAX_TOKENS} words",
                )
            yield ("".join(word.split()), line) if found[2] else (word, line)
        line += found[0].count("\n")
