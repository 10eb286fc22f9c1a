"""State dicts: pickles that run code, archives and headers that lie, layer lists that swell."""

from __future__ import annotations

import io
import json
import os
import pickle
import zipfile
from collections.abc import Iterator
from typing import Any

import torch

from tests.e2e.hostile.case import SPEC, Case, Part
from tests.models.checkpoints.files import rewritten, saved, state
from tests.service.uploads_by_hand import checkpoint, safetensors, zipped

__all__ = ["MARK", "weights"]

#: What the pickles would make if anything ran them.
MARK = "certserve-was-here"
LIST: dict[str, Any] = {
    "input": [1, 6, 6],
    "layers": [{"kind": "flatten"}, {"kind": "linear", "out": 3}],
}


_DEEP = {
    "memo bomb",
    "nothing",
    "safetensors offsets overlap",
    "one storage, a hundred tensors",
    "no weight fits",
    "safetensors bytes of nobody",
    "an integer of 400 digits",
    "an unknown kind",
    "input of 1e18",
    "30000 layers",
}


class _Runs:
    def __reduce__(self) -> Any:
        return (os.mkdir, (MARK,))


def weights() -> Iterator[Case]:
    """Every one with a layer list that would fit a good file."""
    refused = {"pickle_refused"}
    rows: list[tuple[str, set[str], str, bytes]] = [
        ("plain pickle", refused, "a.pt", pickle.dumps(_Runs())),
        ("pickle in a zip", refused, "a.pt", checkpoint(pickle.dumps(_Runs(), 2))),
        ("pickle of protocol 4", refused, "a.pt", checkpoint(pickle.dumps(_Runs(), 4))),
        ("pickle with INST", refused, "a.pt", checkpoint(b"(S'x'\nios\nmkdir\n.")),
        ("pickle with EXT1", refused, "a.pt", checkpoint(b"\x80\x02\x82\x01.")),
        ("pickle that claims 2^63", refused, "a.pt", checkpoint(b"\x80\x04\x8e" + b"\xff" * 8)),
        (
            "memo bomb",
            {"invalid_checkpoint"},
            "a.pt",
            checkpoint(b"\x80\x02r\xff\xff\xff\x7f" + b"." * 3),
        ),
        ("legacy with code", refused, "a.pt", saved({**state(), "x": _Runs()}, legacy=True)),
        ("whole module", refused, "a.pth", saved(torch.nn.Linear(4, 3))),
        ("garbage", refused, "a.pth", b"garbage"),
        (
            "TorchScript",
            {"torchscript_refused"},
            "a.pt",
            rewritten(saved(state()), more={"archive/code/x.py": b"import os"}),
        ),
        ("zip in a zip", {"invalid_checkpoint"}, "a.pt", zipped({"a/a.zip": checkpoint()})),
        ("path upwards", {"invalid_checkpoint"}, "a.pt", checkpoint(**{"a/../../x": b""})),
        ("absolute path", {"invalid_checkpoint"}, "a.pt", checkpoint(**{"/etc/passwd": b""})),
        ("link", {"invalid_checkpoint"}, "a.pt", _link("a/data/1")),
        (
            "deflated bomb",
            {"invalid_checkpoint", "decompression_bomb"},
            "a.pt",
            rewritten(saved({"weight": torch.zeros(20_000_000)}), compression=zipfile.ZIP_DEFLATED),
        ),
        ("cut off", {"invalid_checkpoint"}, "a.pt", saved(state())[:-30]),
        (
            "stride 0: 1e6 x 1e6 of one number",
            {"unsafe_checkpoint"},
            "a.pt",
            saved({"1.weight": torch.zeros(1).expand(1_000_000, 1_000_000)}),
        ),
        (
            "one storage, a hundred tensors",
            {"unsafe_checkpoint"},
            "a.pt",
            saved(_aliased()),
        ),
        ("no weight fits", {"architecture_mismatch"}, "a.pt", saved(state())),
        *_safetensors(),
    ]
    for name, codes, filename, data in rows:
        model = Part(b"model", data, filename.encode())
        deep = name in _DEEP
        yield Case(f"weights {name}", codes, model=model, spec=_spec(LIST), deep=deep)
    yield from _layer_lists()


def _aliased() -> dict[str, torch.Tensor]:
    block = torch.zeros(100_000)
    return {f"{i}.weight": block.view(100, 1000) for i in range(100)}


def _link(name: str) -> bytes:
    file = io.BytesIO(checkpoint())
    with zipfile.ZipFile(file, "a") as archive:
        member = zipfile.ZipInfo(name)
        member.external_attr = 0o120777 << 16
        archive.writestr(member, "/etc/passwd")
    return file.getvalue()


def _safetensors() -> Iterator[tuple[str, set[str], str, bytes]]:
    def lying(**changes: Any) -> bytes:
        return safetensors({"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]} | changes})

    entry = '{"dtype":"F32","shape":[2],"data_offsets":[0,8]}'
    both = {f"{i}.weight": json.loads(entry) for i in range(2)}
    for name, data in {
        "header of 2^60": (2**60).to_bytes(8, "little") + b"{}",
        "header nested": safetensors(b"[" * 200_000),
        "header of 2 MB of empty lists": safetensors(b'{"a":[' + b"[]," * 690_000 + b"[]]}"),
        "header of 16 MB": safetensors(b'{"a":[' + b"[]," * 5_500_000 + b"[]]}"),
        "shape 2^62 x 2^62": lying(shape=[2**62, 2**62]),
        "offsets beyond": lying(data_offsets=[8, 16]),
        "offsets backwards": lying(data_offsets=[8, 0]),
        "offsets overlap": safetensors(both),
        "name twice": safetensors(f'{{"a":{entry},"a":{entry}}}'.encode()),
        "bytes of nobody": safetensors(data=bytes(64)),
        "number of 5000 digits": safetensors(b'{"w":{"shape":[' + b"9" * 5000 + b"]}}"),
    }.items():
        codes = {"invalid_safetensors", "invalid_checkpoint"}
        yield f"safetensors {name}", codes, "a.safetensors", data


def _spec(architecture: Any) -> bytes:
    return json.dumps({**SPEC, "architecture": architecture}).encode()


def _deep(depth: int) -> Any:
    value: Any = []
    for _ in range(depth):
        value = [value]
    return value


def _layer_lists() -> Iterator[Case]:
    good = Part(b"model", saved({"1.weight": torch.ones(3, 36), "1.bias": torch.ones(3)}), b"a.pt")
    codes = {"invalid_architecture", "invalid_json", "invalid_spec"}
    linear = {"kind": "linear", "out": 3}
    flat: list[dict[str, Any]] = [{"kind": "flatten"}]
    for name, architecture in {
        "1e12 outputs": {"input": [1, 6, 6], "layers": [*flat, {"kind": "linear", "out": 10**12}]},
        "input of 1e18": {"input": [10**9, 10**9], "layers": [*flat, linear]},
        "30000 layers": {"input": [1, 6, 6], "layers": [*flat, *[{"kind": "relu"}] * 30_000]},
        "an integer of 400 digits": {
            "input": [1, 6, 6],
            "layers": [{"kind": "linear", "out": 10**400}],
        },
        "an unknown kind": {"input": [1, 6, 6], "layers": [{"kind": "__class__"}]},
        "nothing": {},
        "nested 300 deep": {"input": [1, 6, 6], "layers": _deep(300)},
        "nested 900 deep": {"input": [1, 6, 6], "layers": _deep(900)},
    }.items():
        spec = _spec(architecture)
        yield Case(f"layer list {name}", codes, model=good, spec=spec, deep=name in _DEEP)
