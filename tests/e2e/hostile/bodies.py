"""Forms, JSON and specs that no honest client sends."""

from __future__ import annotations

import json
from collections.abc import Iterator

from tests.e2e.hostile.case import SPEC, Case, Part, encoded

__all__ = ["bodies"]

JSON = "application/json"


def bodies() -> Iterator[Case]:
    """Requests that the API refuses by itself."""
    yield from _specs()
    yield from _forms()
    yield from _names()
    for name, text in {
        "nested": b"[" * 500_000,
        "nested objects": b'{"a":' * 100_000,
        "empty": b"",
        "no UTF-8": b'{"model_id":"\xff"}',
        "half a surrogate pair": b'{"model_id":"\\ud800"}',
        "NaN": b'{"model_id":NaN}',
        "UTF-16 bomb": b"\xff\xfe[",
    }.items():
        yield Case(f"JSON {name}", {"invalid_json"}, body=text, content_type=JSON)
    longer = b'{"model_id":"' + b"a" * 2_000_000 + b'"}'
    yield Case("JSON of 2 MB", {"too_large"}, body=longer, content_type=JSON)
    other = {"unsupported_media_type"}
    yield Case("XML", other, body=b"<!DOCTYPE a [<!ENTITY b 'c'>]>", content_type="text/xml")
    yield Case("a pickle", other, body=b"\x80\x04.", content_type="application/x-pickle")


def _specs() -> Iterator[Case]:
    def with_text(field: str, text: str) -> bytes:
        rest = {name: value for name, value in SPEC.items() if name != field}
        return (json.dumps(rest)[:-1] + f', "{field}": {text}}}').encode()

    epsilon = {"invalid_epsilon", "invalid_spec"}
    for text in ("[1e400]", "[-1e400]", "[0]", "[-1]", '["1/0"]', '["nan"]', '["1e400"]', "[]"):
        yield Case(f"spec epsilons {text}", epsilon, spec=with_text("epsilons", text))
    digits = "9" * 4000
    yield Case("spec epsilon of 4000 digits", epsilon, spec=with_text("epsilons", f"[{digits}]"))
    yield Case("spec epsilon 1/4000 digits", epsilon, spec=with_text("epsilons", f'["1/{digits}"]'))
    yield Case("spec of NaN", {"invalid_json"}, spec=with_text("epsilons", "[NaN]"))
    yield Case("spec number of 1e5 digits", {"invalid_json"}, spec=with_text("seed", "1" * 100_000))
    yield Case("spec with seed 2^70", {"invalid_spec"}, spec=with_text("seed", str(2**70)))
    yield Case("spec with samples -1", {"invalid_spec"}, spec=with_text("samples", "-1"))
    yield Case("spec with samples true", {"invalid_spec"}, spec=with_text("samples", "true"))
    yield Case(
        "spec with 101 epsilons", {"invalid_spec"}, spec=with_text("epsilons", str([1] * 101))
    )
    yield Case(
        "spec with index 1e15", {"invalid_indices"}, spec=with_text("indices", str([10**15]))
    )
    yield Case(
        "spec with a foreign field",
        {"unknown_field"},
        spec=with_text("__proto__", '{"norm": "l2"}'),
    )
    twice = b'{"norm": "l2", "norm": "linf", "epsilons": [0.1]}'
    yield Case("spec with a key twice", {"invalid_json"}, spec=twice)
    yield Case("spec nested", {"invalid_json"}, spec=b"[" * 100_000)
    yield Case("spec with unknown norm", {"invalid_spec"}, spec=with_text("norm", '"../l2"'))
    yield Case("spec too long", {"too_large"}, spec=b" " * 2_000_000)
    yield Case("spec that is a list", {"invalid_spec"}, spec=b"[]")


def _forms() -> Iterator[Case]:
    broken = {"invalid_multipart"}
    spec = Part(b"spec", json.dumps(SPEC).encode())
    many = encoded([Part(b"f%d" % number, b"") for number in range(100_000)])
    yield Case("form of 1e5 fields", {"unknown_field"}, body=many)
    yield Case("form with spec twice", {"duplicate_field"}, more=(spec,))
    yield Case("form that ends early", broken, body=encoded([spec])[:-20])
    yield Case("form without a boundary", broken, body=b"x", content_type="multipart/form-data")
    yield Case("form of nothing", {"missing_field", *broken}, body=encoded([]))
    headers = b"--hostile-boundary\r\n" + b"".join(b"h%d: a\r\n" % n for n in range(10_000))
    yield Case("form with 1e4 headers", broken, body=headers)
    endless = b"--hostile-boundary\r\nContent-Disposition: " + b"a" * 1_000_000
    yield Case("form with an endless header", broken, body=endless)
    endless = b"--hostile-boundary\r\n" + b"a" * 1_000_000
    yield Case("form with an endless header name", broken, body=endless)
    inner = Part(b"model", encoded([spec]), b"a.onnx")
    yield Case("form in a form", {"missing_field"}, model=inner)
    yield Case("form of noise", broken, body=bytes(range(256)) * 4000)


def _names() -> Iterator[Case]:
    """The content is broken too: what counts is that the name does no harm on the way."""
    onnx = {"invalid_onnx"}
    for name in (b"../../../../srv/a.onnx", b"/etc/cron.d/a.onnx", b"a\0.onnx",
                 "\u202egnp.\u0441\u043e\u043c.onnx".encode(), b"a" * 5000 + b".onnx",
                 b"$(touch x).onnx", b"<script>alert(1)</script>.onnx"):  # fmt: skip
        codes = {"invalid_multipart"} if len(name) > 4096 else onnx
        yield Case(f"file named {name[:30]!r}", codes, model=Part(b"model", b"\0", name))
    other = {"unsupported_format"}
    for name in (b"a.onnx\0.exe", b"a.exe", b".onnx", b"a.onnx/..", b"CON"):
        yield Case(f"file named {name!r}", other, model=Part(b"model", b"\0", name))
    bad = Part(b"model", b"\0", b"\xff\xfe.onnx")
    yield Case("file name that is no UTF-8", {"invalid_multipart"}, model=bad)
    yield Case("field named by NUL", {"unknown_field"}, more=(Part(b"a\0b", b"x"),))
    missing = {"missing_filename", "unknown_field"}
    yield Case("file without a name", missing, model=Part(b"model", b"\0"))
