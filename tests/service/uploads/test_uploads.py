"""Hostile and broken uploads are refused by their bytes, before anything is inflated."""

from __future__ import annotations

import gzip
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from service.contract.schemas.problems import InvalidInput, Unsupported
from service.contract.settings import Settings
from service.uploads.dataset_files import dataset_format, inspect_dataset
from service.uploads.model_files import inspect_model, model_format
from tests.service.uploads_by_hand import (
    checkpoint,
    idx_pair,
    images_zip,
    npy_claim,
    npz,
    npz_bomb,
    onnx_model,
    safetensors,
    zip_with_link,
    zipped,
)

SETTINGS = Settings(max_archive_members=100)


class _Bomb:
    def __reduce__(self) -> Any:
        return (print, ("unpickled!",))


def _legacy(obj: bytes) -> bytes:
    magic = pickle.dumps(0x1950A86A20F9469CFC6C, 2)
    rest = pickle.dumps(1001, 2), pickle.dumps({}, 2)
    return magic + b"".join(rest) + obj + pickle.dumps([], 2) + b"raw storages"


def _many() -> bytes:
    return zipped({f"a/{number}.png": b"" for number in range(101)})


X = np.zeros((5, 1, 4, 4), np.uint8)

MODELS: list[tuple[str, str, bytes]] = [
    ("invalid_onnx", "a.onnx", b"\0"),
    ("invalid_onnx", "a.onnx", b"\x80\x80"),
    ("invalid_onnx", "a.onnx", b"\xff" * 100),
    ("invalid_onnx", "a.onnx", onnx_model()[:-1]),
    ("invalid_onnx", "a.onnx", b"\x08\x08"),  # no graph
    ("invalid_onnx", "a.onnx", b"\x3a\xff\xff\xff\xff\x07" + b"x" * 10),  # claims 2 GB
    ("invalid_onnx", "a.onnx", b"\x3a\xff\xff\xff\xff\xff\xff\xff\xff\x7f"),
    ("invalid_onnx", "a.onnx", onnx_model() * 2),
    ("invalid_onnx", "a.onnx", npz()),
    ("invalid_onnx", "a.onnx", b"<html><body>404</body></html>"),
    ("invalid_safetensors", "a.safetensors", b"short"),
    ("invalid_safetensors", "a.safetensors", b"\xff" * 100),
    ("invalid_safetensors", "a.safetensors", safetensors(b"{")),
    ("invalid_safetensors", "a.safetensors", safetensors(b"[" * 200_000)),
    ("invalid_safetensors", "a.safetensors", safetensors(b'{"w": 1, "w": 2}')),
    ("invalid_safetensors", "a.safetensors", safetensors(b"[" + b"[]," * 10**6 + b"[]]")),
    ("invalid_safetensors", "a.safetensors", safetensors([])),
    ("invalid_safetensors", "a.safetensors", safetensors({})),
    ("invalid_safetensors", "a.safetensors", safetensors({"w": 1})),
    *(
        ("invalid_safetensors", "a.safetensors", safetensors({"w": entry}))
        for entry in (
            {"dtype": "F32", "shape": [3], "data_offsets": [0, 8]},
            {"dtype": "F32", "shape": [-2], "data_offsets": [0, 8]},
            {"dtype": "F32", "shape": [2], "data_offsets": [8, 16]},
            {"dtype": "F32", "shape": [2**62, 2**62], "data_offsets": [0, 8]},
            {"dtype": "object", "shape": [2], "data_offsets": [0, 8]},
        )
    ),
    ("pickle_refused", "a.pt", pickle.dumps(_Bomb())),
    ("pickle_refused", "a.pt", pickle.dumps({"w": 1})),
    ("pickle_refused", "a.pth", b"garbage"),
    ("pickle_refused", "a.pt", checkpoint(pickle.dumps(_Bomb(), 2))),
    ("pickle_refused", "a.pt", checkpoint(pickle.dumps(_Bomb(), 4))),
    ("pickle_refused", "a.pt", checkpoint(b"(S'touch x'\nios\nsystem\n.")),
    ("pickle_refused", "a.pt", checkpoint(b"\x80\x02cos\nsystem\nX\x01\0\0\0a\x85R.")),
    ("pickle_refused", "a.pt", checkpoint(b"\x80\x02}")),
    ("pickle_refused", "a.pt", checkpoint(b"\x80\x04\x8e" + b"\xff" * 8)),
    ("pickle_refused", "a.pt", _legacy(pickle.dumps(_Bomb(), 2))),
    ("pickle_refused", "a.pt", _legacy(b"")[:30]),
    ("invalid_checkpoint", "a.pt", zipped({"a/x.txt": b""})),
    ("invalid_checkpoint", "a.pt", zipped({"a/version": b""})),
    ("invalid_checkpoint", "a.pt", checkpoint()[:-30]),
    ("invalid_checkpoint", "a.pt", zipped({"a/data.pkl": b"0" * 99}, compression=8)),
    ("invalid_checkpoint", "a.pt", zipped({"a/data.pkl": b".", "b/data.pkl": b"."})),
    ("torchscript_refused", "a.pt", checkpoint(**{"a/code/x.py": b""})),
    (
        "torchscript_refused",
        "a.pt",
        zipped({"a/data.pkl": b".", "a/code/x.py": b""}, compression=8),
    ),
    ("torchscript_refused", "a.pt", zipped({"a/models/model.json": b"{}"})),
    ("empty_file", "a.pt", b""),
]

DATASETS: list[tuple[str, str, bytes]] = [
    ("invalid_npz", "a.npz", npz()[:-10]),
    ("invalid_npz", "a.npz", npz()[: len(npz()) // 2]),
    ("invalid_npz", "a.npz", b"garbage" * 100),
    ("invalid_npz", "a.npz", zipped({"x.npy": b"\x93NUMPY\x01\x00\xff\xff{"})),
    ("invalid_npz", "a.npz", zipped({"x.npy": npy_claim("__import__('os').system('true')")})),
    ("invalid_npz", "a.npz", zipped({"x.npy": npy_claim("(" * 5000)})),
    ("invalid_npz", "a.npz", zipped({"x.npy": npy_claim("(4,)", "'<f4',")})),
    ("invalid_npz", "a.npz", zipped({"x.npy": b"", "../y.npy": b""})),
    ("invalid_npz", "a.npz", zipped({"x.npy": b"1"}, compression=zipfile.ZIP_LZMA)),
    ("invalid_dataset", "a.npz", npz(pictures=X)),
    ("invalid_dataset", "a.npz", npz(x_test=X, x_train=X)),
    ("invalid_dataset", "a.npz", zipped({"x.npy": npy_claim("(1000000, 1000000)")})),
    ("invalid_dataset", "a.npz", zipped({"x.npy": npy_claim("(-1, 4)")})),
    ("invalid_dataset", "a.npz", npz(x=X.astype(np.complex64), y=np.arange(5))),
    ("invalid_dataset", "a.npz", npz(x=X.astype(np.int64), y=np.arange(5))),
    ("invalid_dataset", "a.npz", npz(x=np.zeros(5, np.float32), y=np.arange(5))),
    ("invalid_dataset", "a.npz", npz(x=np.zeros((1,) * 6, np.float32))),
    ("invalid_dataset", "a.npz", npz(x=X, y=np.arange(5) + 0.5)),
    ("invalid_dataset", "a.npz", npz(x=X, y=np.zeros((5, 10, 1), np.int64))),
    ("invalid_npz", "a.npy", b"garbage" * 100),
    ("invalid_dataset", "a.npy", npy_claim("(4, 2)")),
    ("pickle_refused", "a.npz", npz(x=np.array([[_Bomb()]], dtype=object))),
    ("pickle_refused", "a.npz", npz(x=X, y=np.array([1, None, 2, 3, 4], dtype=object))),
    ("empty_dataset", "a.npz", npz(x=X[:0], y=np.arange(0))),
    ("length_mismatch", "a.npz", npz(x=X, y=np.arange(4))),
    ("invalid_labels", "a.npz", npz(x=X, y=np.array([0, 1, 2, 3, -1]))),
    ("decompression_bomb", "a.npz", npz_bomb()),
    ("empty_dataset", "a.zip", zipped({"readme.txt": b""})),
    ("invalid_dataset", "a.zip", zipped({"1.png": b""})),
    ("invalid_zip", "a.zip", zipped({"/etc/1.png": b""})),
    ("invalid_zip", "a.zip", zipped({"a/../../1.png": b""})),
    ("invalid_zip", "a.zip", zip_with_link()),
    ("decompression_bomb", "a.zip", _many()),
    ("invalid_idx", "a.gz", gzip.compress(b"text")),
    ("invalid_idx", "a.gz", b"text"),
    ("invalid_idx", "a.gz", idx_pair()[0][:12]),
    ("empty_file", "a.gz", b""),
]


def _names(cases: list[tuple[str, str, bytes]]) -> list[str]:
    """Without the bytes, which may hold the second in which they were packed: processes that share
    the tests must agree on their names."""
    return [f"{number}-{code}" for number, (code, _, _) in enumerate(cases)]


@pytest.mark.parametrize(("code", "name", "data"), MODELS, ids=_names(MODELS))
def test_a_bad_model_is_refused(tmp_path: Path, code: str, name: str, data: bytes) -> None:
    path = tmp_path / "upload"
    path.write_bytes(data)
    with pytest.raises(InvalidInput) as caught:
        inspect_model(path, name, SETTINGS)
    assert caught.value.code == code, caught.value
    assert caught.value.field == "model"


@pytest.mark.parametrize(("code", "name", "data"), DATASETS, ids=_names(DATASETS))
def test_a_bad_data_set_is_refused(tmp_path: Path, code: str, name: str, data: bytes) -> None:
    path, labels = tmp_path / "upload", tmp_path / "labels"
    path.write_bytes(data)
    labels.write_bytes(idx_pair()[1])
    with pytest.raises(InvalidInput) as caught:
        inspect_dataset(path, name, SETTINGS, labels=labels if name.endswith("gz") else None)
    assert caught.value.code == code, caught.value
    assert caught.value.field is not None


@pytest.mark.parametrize(
    ("name", "data", "said"),
    [
        ("a.onnx", onnx_model()[:-1], "onnx.checker"),
        ("a.onnx", b"\xff" * 200, "onnx.checker"),
        ("a.onnx", b"\n\n<html><body>404</body></html>", "web page"),
        ("a.onnx", b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        ("a.onnx", zipped({"a.onnx": b""}), "unpack"),
        ("a.onnx", b"", "holds anything"),
        ("a.safetensors", b"short", "safetensors.torch"),
        ("a.pt", checkpoint()[:-30], "zipfile"),
    ],
    ids=lambda value: value if isinstance(value, str) else "data",
)
def test_a_damaged_model_is_told_what_to_do(
    tmp_path: Path, name: str, data: bytes, said: str
) -> None:
    path = tmp_path / "upload"
    path.write_bytes(data)
    with pytest.raises(InvalidInput) as caught:
        inspect_model(path, name, SETTINGS)
    assert said in (caught.value.hint or "")


@pytest.mark.parametrize("dtype", [np.float32, np.int64, np.bool_])
def test_one_hot_labels_of_any_type_are_left_to_the_worker(tmp_path: Path, dtype: type) -> None:
    path = tmp_path / "upload"
    path.write_bytes(npz(x=X, y=np.eye(len(X), dtype=dtype)))
    facts = inspect_dataset(path, "a.npz", SETTINGS)
    assert (facts.samples, facts.labels) == (len(X), True)


@pytest.mark.parametrize(
    "y",
    [
        np.arange(5) > 2,
        np.arange(5.0, dtype=np.float16),
        np.array(["a", "b", "a", "b", "a"]),
        np.array([b"ab", b"c", b"c", b"c", b"c"]),
    ],
)
def test_truths_whole_floats_and_names_pass_as_labels(tmp_path: Path, y: Any) -> None:
    path = tmp_path / "upload"
    path.write_bytes(npz(x=X, y=y))
    assert inspect_dataset(path, "a.npz", SETTINGS).labels


@pytest.mark.parametrize("y", [[0.0, 1, 2, 3, np.nan], [0, 1, 2, 3, np.inf], [0, 1, 2, 3, -1.0]])
def test_floats_that_number_no_class_are_refused(tmp_path: Path, y: list[float]) -> None:
    path = tmp_path / "upload"
    path.write_bytes(npz(x=X, y=np.array(y)))
    with pytest.raises(InvalidInput):
        inspect_dataset(path, "a.npz", SETTINGS)


def test_samples_and_labels_that_are_exchanged_are_told(tmp_path: Path) -> None:
    path, labels = tmp_path / "x.npy", tmp_path / "y.npy"
    np.save(path, np.arange(5))
    np.save(labels, X)
    with pytest.raises(InvalidInput, match="exchanged"):
        inspect_dataset(path, "x.npy", SETTINGS, labels=labels)
    path.write_bytes(npz(x=np.arange(5), y=X))
    with pytest.raises(InvalidInput, match="exchanged"):
        inspect_dataset(path, "a.npz", SETTINGS)
    path.write_bytes(idx_pair()[1])
    labels.write_bytes(idx_pair()[0])
    with pytest.raises(InvalidInput) as caught:
        inspect_dataset(path, "a.gz", SETTINGS, labels=labels)
    assert "exchanged" in (caught.value.hint or "")


def test_other_usual_files_are_told_what_to_do() -> None:
    for name, words in (
        ("m.keras", 'model.export("model.onnx", format="onnx")'),
        ("m.H5", 'format="onnx"'),
        ("m.pkl", "skl2onnx.to_onnx"),
        ("m.joblib", "skl2onnx.to_onnx"),
        ("m.npz", "data set"),
        ("m.xyz", "known suffixes"),
    ):
        with pytest.raises(Unsupported) as refused:
            model_format(name)
        assert words in (refused.value.hint or "")
    for name, words in (("x.csv", "numpy.savez"), ("x.png", ".zip"), ("m.onnx", "the model")):
        with pytest.raises(Unsupported) as refused:
            dataset_format(name)
        assert words in (refused.value.hint or "")


def test_labels_of_a_regression_are_told_where_it_belongs(tmp_path: Path) -> None:
    path = tmp_path / "upload"
    path.write_bytes(npz(x=X, y=np.linspace(0, 1, len(X))))
    with pytest.raises(InvalidInput) as caught:
        inspect_dataset(path, "a.npz", SETTINGS)
    assert "property" in (caught.value.hint or "")


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (npz(x=X, y=np.arange(5))[:-30], "zipfile"),
        (npz(x=X, y=np.arange(5) - 1), "from 0"),
        (npz(x=X, y=np.arange(4)), "same order"),
        (zipped({}), "numpy.savez"),
        (npz(x=X, y=np.array(list("ababa"), dtype=object)), "y.astype(str)"),
        (npz(x=X.astype(object), y=np.arange(5)), "x.astype(numpy.float32)"),
        (npz(x=X[:0], y=np.arange(0)), "x.shape"),
        (npz(x=np.float32(1)), "numpy.stack"),
        (npz(x=np.zeros(5, np.float32)), "x[:, None]"),
        (npz(x=X, y=np.int64(1)), "an array of 5"),
        (b"", "holds anything"),
        (b"<!DOCTYPE html>", "web page"),
        (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
    ],
)
def test_a_bad_data_set_is_told_what_to_do(tmp_path: Path, data: bytes, said: str) -> None:
    path = tmp_path / "upload"
    path.write_bytes(data)
    with pytest.raises(InvalidInput) as caught:
        inspect_dataset(path, "a.npz", SETTINGS)
    assert said in (caught.value.hint or "")
    assert "holds ," not in str(caught.value)


def test_a_pair_of_npy_files_passes(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", X)
    np.save(tmp_path / "y.npy", np.arange(len(X)))
    facts = inspect_dataset(tmp_path / "x.npy", "x.npy", SETTINGS, labels=tmp_path / "y.npy")
    assert (facts.format, facts.samples, facts.labels) == ("npy", len(X), True)
    assert not inspect_dataset(tmp_path / "x.npy", "x.npy", SETTINGS).labels
    np.save(tmp_path / "y.npy", np.arange(len(X) + 1))
    with pytest.raises(InvalidInput) as caught:
        inspect_dataset(tmp_path / "x.npy", "x.npy", SETTINGS, labels=tmp_path / "y.npy")
    assert caught.value.code == "length_mismatch"


def test_a_swapped_or_uneven_idx_pair_is_refused(tmp_path: Path) -> None:
    images, labels = tmp_path / "images", tmp_path / "labels"
    images.write_bytes(idx_pair(images=4)[0])
    labels.write_bytes(idx_pair()[1])
    for first, second, code in (
        (labels, images, "invalid_idx"),
        (images, labels, "length_mismatch"),
    ):
        with pytest.raises(InvalidInput) as caught:
            inspect_dataset(first, "a.gz", SETTINGS, labels=second)
        assert caught.value.code == code


def test_good_uploads_pass(tmp_path: Path) -> None:
    path, labels = tmp_path / "upload", tmp_path / "labels"
    for name, data in (
        ("a.onnx", onnx_model()),
        ("a.safetensors", safetensors()),
        ("a.pt", checkpoint()),
        ("a.pth", _legacy(b"\x80\x02ccollections\nOrderedDict\nq\x00)Rq\x01.")),
    ):
        path.write_bytes(data)
        inspect_model(path, name, SETTINGS)
    for data in (npz(), npz(x=X), npz(x=X, y=np.arange(5, dtype=np.uint8).reshape(5, 1))):
        path.write_bytes(data)
        assert inspect_dataset(path, "a.npz", SETTINGS).samples == 5
    path.write_bytes(images_zip())
    assert inspect_dataset(path, "a.zip", SETTINGS).samples == 3
    images, classes = idx_pair()
    path.write_bytes(images)
    labels.write_bytes(classes)
    assert inspect_dataset(path, "a.gz", SETTINGS, labels=labels).shape == [2, 2]


def test_a_name_without_a_known_suffix_is_unsupported(tmp_path: Path) -> None:
    for name in ("net", "net.exe", ".onnx", "onnx", "a.onnx.zip"):
        with pytest.raises(Unsupported):
            inspect_model(tmp_path, name, SETTINGS)
    with pytest.raises(Unsupported):
        inspect_dataset(tmp_path, "data.csv", SETTINGS)
