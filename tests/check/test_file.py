"""What is no certificate is refused in a sentence: quickly, without reading or making much."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import check.network
import check.verify
from check.file import Unreadable
from check.verify import main, parse
from tests.check.forger import Forgery, example, proves
from workers.jobs.report.certificate import WORK


@pytest.fixture(scope="module")
def honest() -> bytes:
    return example()


def packed(header: object, body: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + body


METADATA = {"__metadata__": {"certificate": "{}"}}


def tensor(dtype: str, shape: list[Any], start: int, stop: int) -> dict[str, Any]:
    return {**METADATA, "t": {"dtype": dtype, "shape": shape, "data_offsets": [start, stop]}}


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"PK\x03\x04" + b"\0" * 60,
        b"\xff" * 8,
        packed({}),
        packed(b"[1]"),
        packed(b"\xff\xfe"),
        packed(b"[" * 100_000),
        packed(b'{"a": ' + b"9" * 10_000 + b"}"),
        packed(b'{"a": 1, "a": 2}'),
        packed({"__metadata__": {"certificate": "[" * 100_000}}),
        packed({"__metadata__": {"certificate": "{}", "more": ""}}),
        packed(METADATA),
        packed(tensor("F32", [2**40, 2**40], 0, 4), b"\0" * 4),
        packed(tensor("F32", [0], 0, 2**62)),
        packed(tensor("F32", [1], 4, 8), b"\0" * 8),
        packed(tensor("F32", [1], 0, 4), b"\0" * 8),
        packed(tensor("F32", [-1], 0, -4)),
        packed(tensor("F32", [1.0], 0, 4), b"\0" * 4),
        packed(tensor("F32", [1] * 40, 0, 4), b"\0" * 4),
        packed(tensor("O", [1], 0, 8), b"\0" * 8),
        packed(tensor("F32", [1], 0, 4), np.float32(np.nan).tobytes()),
        packed(tensor("F64", [1], 0, 8), np.float64(np.inf).tobytes()),
    ],
)
def test_broken_files_are_refused(data: bytes) -> None:
    assert str(proves(data)).startswith("Unreadable: ")


def test_a_file_cut_anywhere_is_refused(honest: bytes) -> None:
    for length in range(0, len(honest), 97):
        assert str(proves(honest[:length])).startswith("Unreadable: ")
    assert str(proves(honest + b"\0")).startswith("Unreadable: ")


def test_hostile_values_under_good_digests_are_refused(honest: bytes) -> None:
    huge = 2**25
    changes: list[tuple[tuple[Any, ...], Any]] = [
        (("layers", 1, "padding"), [4096] * 4),
        (("layers", 1, "padding"), [10**12] * 4),
        (("layers", 1, "dilation"), [4096, 4096]),
        (("layers", 1, "stride"), [0, 1]),
        (("layers", 1, "stride"), [True, 1]),
        (("layers", 3, "kernel"), [4096, 4096]),
        (("layers", 6, "shape"), [huge, huge]),
        (("layers", 6, "shape"), [6, -6, -1]),
        (("layers", 5, "kind"), ["relu"]),
        (("layers", 7, "weight"), "../../etc/passwd"),
        (("layers", 7, "weight"), "layers.layer9.weight"),
        (("layers", 7, "norm"), "inf"),
        (("layers", 7, "norm"), 1),
        (("layers",), [{"name": "r", "kind": "relu"}] * 10_000),
        (("input_shape",), [huge, huge]),
        (("samples",), 10**12),
        (("threat", "epsilons", 0), "9" * 1000),
        (("threat", "epsilons", 0), "1/0"),
        (("threat", "epsilons", 0), "-1"),
        (("threat", "epsilons"), []),
        (("certified",), [1.0, 2.0]),
        (("ends_in",), {"a": 1}),
        (("about",), None),
    ]
    for path, value in changes:
        forgery = Forgery(honest)
        inner = forgery.document
        for key in path[:-1]:
            inner = inner[key]
        inner[path[-1]] = value
        forgery.seal()
        assert proves(forgery.pack()) is not None, path
    for name in ("rows.input", "rows.radius", "layers.layer4.weight"):
        for value in (np.nan, np.inf, -np.inf):
            forgery = Forgery(honest)
            if forgery.tensors[name].dtype.kind == "f":
                forgery.tensors[name].reshape(-1)[0] = value
                forgery.seal()
                assert str(proves(forgery.pack())).startswith("Unreadable: ")


def test_weights_that_overflow_prove_nothing(honest: bytes) -> None:
    for size in (3e38, 1e-45):
        forgery = Forgery(honest)
        forgery.tensors["layers.layer4.weight"][:] = size
        forgery.seal()
        assert str(proves(forgery.pack())).startswith("Rejected: ")


def test_the_command_alone_in_a_folder(honest: bytes, tmp_path: Path, root: Path) -> None:
    """Nothing of this service and nothing but numpy is there: exit status 0, 1, 2."""
    shutil.copytree(root / "check", tmp_path / "check")
    (tmp_path / "good").write_bytes(honest)
    forgery = Forgery(honest)
    forgery.tensors["rows.radius"][-1] *= 1.5
    forgery.seal()
    (tmp_path / "false").write_bytes(forgery.pack())
    (tmp_path / "cut").write_bytes(honest[:-1])
    missing = ("service", "workers", "models", "torch", "scipy", "onnx", "safetensors", "pydantic")
    code = (
        f"import sys\nfor name in {missing}: sys.modules[name] = None\n"
        "from check.verify import main\n"
        "print(*(main([name]) for name in ('good', 'false', 'cut', '.', '/dev/zero')))"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert ran.stdout.splitlines()[-1] == "0 1 2 2 2", ran.stdout
    assert "12 samples, linf" in ran.stdout
    assert "REJECTED: sample 111: radius" in ran.stdout


def test_tensors_are_compared_with_the_model_s_file(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], honest: bytes
) -> None:
    from models.onnx.exporter.export import export_onnx
    from tests.check.forger import example_network

    (tmp_path / "certificate").write_bytes(honest)
    (tmp_path / "model.onnx").write_bytes(export_onnx(example_network()))
    asked = [str(tmp_path / "certificate"), "--model"]
    assert main([*asked, str(tmp_path / "model.onnx")]) == 0
    assert "has all" in capsys.readouterr().out
    assert main([*asked, str(root / "examples" / "mnist_certified.onnx")]) == 1
    assert "not in the model's file" in capsys.readouterr().out
    assert main([*asked, str(tmp_path / "certificate")]) == 2


def test_what_takes_too_long_is_not_begun(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of one evaluation while the file is read, of all claims and norms before the first."""
    honest = example()
    network = parse(io.BytesIO(honest)).network
    assert network.once * 26 < network.work(12, 1) < WORK < check.verify.MOST
    monkeypatch.setattr(check.verify, "MOST", network.work(12, 0) - 1.0)
    assert "multiplications" in str(proves(honest))
    monkeypatch.setattr(check.network, "MOST", network.once - 1.0)
    with pytest.raises(Unreadable, match="multiplications"):
        parse(io.BytesIO(honest))
