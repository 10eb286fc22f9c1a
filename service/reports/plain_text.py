"""Text from elsewhere as pages and charts show it: read, never obeyed.

Escaping keeps a name from being markup. It leaves what has no sign of its own: control characters,
which no XML document may hold, halves of surrogate pairs, which have no UTF-8, and the marks that
turn the direction of all text after them, by which a name can make its neighbours read backwards
(Unicode Technical Report 36, section 2.10; Boucher and Anderson 2021).
"""

from __future__ import annotations

import re
from typing import Any
from xml.sax.saxutils import escape

from markupsafe import Markup

__all__ = ["escaped", "finalize", "plain"]

#: C0 and C1 controls but tabs and line ends; embeddings, overrides and isolates; surrogates;
#: what is no character. Marks that only join letters or set one place's direction stay: Arabic and
#: Hebrew names have them.
_OBEYED = re.compile(
    "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]"
)


def plain(text: str) -> str:
    """The text with a replacement character for each sign that is obeyed instead of read."""
    return _OBEYED.sub("\N{REPLACEMENT CHARACTER}", text)


def escaped(text: str) -> str:
    """Plain text for an element of XML."""
    return escape(plain(text))


def finalize(value: Any) -> Any:
    """What a template writes for a value, before it is escaped: ours is trusted, text is plain."""
    return plain(value) if isinstance(value, str) and not isinstance(value, Markup) else value
