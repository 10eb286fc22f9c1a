"""Data sets are read within bounds, without pickles, and only as far as asked."""

from __future__ import annotations

import gzip
import io
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from service.contract.array_names import ARRAY_NAMES
from workers.jobs.datasets.arrays import (
    Bounds,
    DataError,
    DataSet,
    check_labels,
    read_npy,
    read_npz,
)
from workers.jobs.datasets.idx import read_idx
from workers.jobs.datasets.sources import read_source

BOUNDS = Bounds()


def npz(path: Path, **arrays: object) -> Path:
    np.savez_compressed(path, **arrays)  # type: ignore[arg-type]
    return path


def idx(path: Path, array: np.ndarray) -> Path:
    header = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, dtype=">u4").tobytes()
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "wb") as file:
        file.write(header + array.tobytes())
    return path


def test_npz_selections(tmp_path: Path, rng: np.random.Generator) -> None:
    x = rng.integers(0, 256, (20, 4, 4, 3), dtype=np.uint8)
    y = np.arange(20)
    path = npz(tmp_path / "a.npz", x=x, y=y)
    first = read_npz(path, 5, BOUNDS)
    assert first.size == 20
    assert (first.x == x[:5]).all()
    everything = read_npz(path, "all", BOUNDS)
    assert everything.y is not None
    assert (everything.x == x).all()
    some = read_npz(path, [19, 3], BOUNDS)
    assert (some.x == x[[19, 3]]).all()
    assert some.y is not None
    assert some.y.tolist() == [19, 3] == some.indices.tolist()
    assert len(read_npz(path, 1000, BOUNDS).x) == 20


def test_npz_stored_by_columns(tmp_path: Path, rng: np.random.Generator) -> None:
    x = np.asfortranarray(rng.random((6, 3, 5)))
    assert (read_npz(npz(tmp_path / "a.npz", x=x), 4, BOUNDS).x == x[:4]).all()


def test_npz_without_labels(tmp_path: Path) -> None:
    assert read_npz(npz(tmp_path / "a.npz", x=np.zeros((3, 2))), "all", BOUNDS).y is None


@pytest.mark.parametrize("x_name", ARRAY_NAMES)
@pytest.mark.parametrize("one_hot", [False, True])
def test_other_usual_names_and_one_hot_rows_are_read(
    tmp_path: Path, rng: np.random.Generator, x_name: str, one_hot: bool
) -> None:
    x, y = rng.random((5, 3)).astype(np.float32), np.array([2, 0, 1, 2, 0])
    for y_name in ARRAY_NAMES[x_name]:
        labels = np.eye(3, dtype=np.float32)[y] if one_hot else y
        data = read_npz(npz(tmp_path / "a.npz", **{x_name: x, y_name: labels}), [4, 1], BOUNDS)
        assert (data.x == x[[4, 1]]).all()
        assert data.y is not None
        assert data.y.tolist() == [0, 0]
        assert data.warnings == ()


def test_a_pair_of_npy_files(tmp_path: Path, rng: np.random.Generator) -> None:
    x, y = rng.integers(0, 256, (6, 4, 4, 3), dtype=np.uint8), np.arange(6)
    np.save(tmp_path / "x.npy", x)
    np.save(tmp_path / "y.npy", y)
    data = read_npy(tmp_path / "x.npy", tmp_path / "y.npy", [5, 2], BOUNDS)
    assert (data.x == x[[5, 2]]).all()
    assert data.y is not None
    assert (data.y.tolist(), data.size) == ([5, 2], 6)
    assert read_npy(tmp_path / "x.npy", None, "all", BOUNDS).y is None
    np.save(tmp_path / "y.npy", np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(DataError) as caught:
        read_npy(tmp_path / "x.npy", tmp_path / "y.npy", "all", BOUNDS)
    assert caught.value.code == "unsupported_dtype"
    (tmp_path / "x.npy").write_bytes(b"garbage")
    with pytest.raises(DataError) as caught:
        read_npy(tmp_path / "x.npy", None, "all", BOUNDS)
    assert caught.value.code == "invalid_dataset"


@pytest.mark.parametrize(
    ("arrays", "code"),
    [
        ({"pictures": np.zeros((3, 2))}, "missing_array"),
        ({"x_test": np.zeros((3, 2)), "x_train": np.zeros((3, 2))}, "missing_array"),
        ({"images": np.zeros((3, 2)), "data": np.zeros((3, 2))}, "missing_array"),
        ({"x": np.zeros((0, 2))}, "empty_dataset"),
        ({"x": np.array(1.0)}, "bad_shape"),
        ({"x": np.zeros((3, 2)), "y": np.zeros(4)}, "label_mismatch"),
        ({"x": np.zeros((3, 2)), "y": np.array([0, 1, 0.5])}, "label_not_integral"),
        ({"x": np.zeros((3, 2)), "y": np.array([0, 1, np.nan])}, "label_not_integral"),
        ({"x": np.zeros((3, 2)), "y": 2 * np.eye(3)}, "label_mismatch"),
        ({"x": np.zeros((3, 2)), "y": np.ones((3, 2))}, "label_mismatch"),
        ({"x": np.zeros((3, 2)), "y": np.zeros((3, 2))}, "label_mismatch"),
        ({"x": np.zeros((3, 2)), "y": np.array(["0", "1", "2"])}, "unknown_label"),
        (
            {"x": np.zeros((3, 2)), "y": np.array([0, 1, 2**63], dtype=np.uint64)},
            "label_out_of_range",
        ),
        ({"x": np.zeros((3, 2), dtype=complex)}, "unsupported_dtype"),
        ({"x": np.array(["a", "b"])}, "unsupported_dtype"),
    ],
)
def test_npz_refused(tmp_path: Path, arrays: dict[str, np.ndarray], code: str) -> None:
    with pytest.raises(DataError) as caught:
        read_npz(npz(tmp_path / "a.npz", **arrays), "all", BOUNDS)
    assert caught.value.code == code
    if code in ("empty_dataset", "bad_shape", "unsupported_dtype", "unknown_label"):
        assert caught.value.hint is not None


def test_labels_under_another_name_are_told(tmp_path: Path) -> None:
    told = read_npz(npz(tmp_path / "a.npz", x=np.zeros((3, 2)), labels=np.ones(3)), "all", BOUNDS)
    assert told.y is None
    assert "'labels'" in told.warnings[0]
    assert "named 'y'" in told.warnings[0]
    whole = npz(tmp_path / "b.npz", x=np.zeros((3, 2)), y=np.zeros((3, 1)))
    assert read_npz(whole, "all", BOUNDS).warnings == ()


def test_pickled_array_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    np.savez(path, x=np.array([object()], dtype=object))
    with pytest.raises(DataError) as caught:
        read_npz(path, "all", BOUNDS)
    assert caught.value.code == "unsupported_dtype"


def test_a_header_that_claims_terabytes_costs_nothing(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        file, {"descr": "<f8", "fortran_order": False, "shape": (2**19, 2**20)}
    )
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x.npy", file.getvalue() + b"1234")
    with pytest.raises(DataError) as caught:
        read_npz(path, "all", BOUNDS)
    assert caught.value.code == "too_large"


def test_cut_npz(tmp_path: Path) -> None:
    path = npz(tmp_path / "a.npz", x=np.ones((50, 50)))
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(DataError) as caught:
        read_npz(path, "all", BOUNDS)
    assert caught.value.code == "invalid_dataset"


@pytest.mark.parametrize("suffix", [".gz", ""])
def test_idx_pair(tmp_path: Path, rng: np.random.Generator, suffix: str) -> None:
    x = rng.integers(0, 256, (7, 4, 4), dtype=np.uint8)
    y = rng.integers(0, 10, 7, dtype=np.uint8)
    images, labels = idx(tmp_path / f"x{suffix}", x), idx(tmp_path / f"y{suffix}", y)
    data = read_idx(images, labels, [6, 0], BOUNDS)
    assert (data.x == x[[6, 0]]).all()
    assert data.y is not None
    assert data.y.tolist() == y[[6, 0]].tolist()


def test_idx_files_end_where_they_say(tmp_path: Path) -> None:
    array = np.arange(32, dtype=np.uint8).reshape(2, 4, 4)
    whole = idx(tmp_path / "x.gz", array).read_bytes()
    path = tmp_path / "y.gz"
    path.write_bytes(whole)
    assert (read_idx(path, None, "all", BOUNDS).x == array).all()
    broken = bytearray(whole)
    broken[-8] ^= 1  # in the checksum
    for content in (gzip.compress(gzip.decompress(whole) + b"\0"), whole[:-6], bytes(broken)):
        path.write_bytes(content)
        with pytest.raises(DataError) as caught:
            read_idx(path, None, "all", BOUNDS)
        assert caught.value.code == "invalid_dataset"


@pytest.mark.parametrize("content", [b"", b"\0\0\x08", b"\x1f\x8bgarbage", b"\0\0\x0d\1\0\0\0\1\0"])
def test_broken_idx(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x"
    path.write_bytes(content)
    with pytest.raises(DataError) as caught:
        read_idx(path, None, "all", BOUNDS)
    assert caught.value.code == "invalid_dataset"


def test_digits_split() -> None:
    test = read_source("digits", {}, "test", "all", BOUNDS)
    train = read_source("digits", {}, "train", "all", BOUNDS)
    assert (test.size, train.size) == (500, 1297)
    assert test.x.dtype == np.float32
    assert 0 <= test.x.min() <= test.x.max() == 1


def test_cifar_batches(tmp_path: Path, rng: np.random.Generator) -> None:
    import pickle

    x = rng.integers(0, 256, (4, 3072), dtype=np.uint8)
    labels = [3, 1, 4, 1]
    batch = {b"data": x, b"labels": labels}
    (tmp_path / "test_batch").write_bytes(pickle.dumps(batch))
    (tmp_path / "test_batch.bin").write_bytes(
        b"".join(bytes([label]) + row.tobytes() for label, row in zip(labels, x, strict=True))
    )
    for kind in ("cifar_python", "cifar_binary"):
        data = read_source(kind, {"folder": tmp_path}, "test", 3, BOUNDS)
        assert (data.x == x[:3].reshape(3, 3, 32, 32)).all()
        assert data.y is not None
        assert data.y.tolist() == labels[:3]


def test_a_batch_that_would_run_code_is_refused(tmp_path: Path) -> None:
    (tmp_path / "test_batch").write_bytes(b"cos\nsystem\n(S'touch pwned'\ntR.")
    with pytest.raises(DataError) as caught:
        read_source("cifar_python", {"folder": tmp_path}, "test", 3, BOUNDS)
    assert caught.value.code == "invalid_dataset"


def test_mnist_as_published(shared: Path) -> None:
    folder = shared / "data" / "mnist"
    data = read_idx(
        folder / "t10k-images-idx3-ubyte.gz", folder / "t10k-labels-idx1-ubyte.gz", 3, BOUNDS
    )
    assert data.size == 10_000
    assert data.x.shape == (3, 28, 28)
    assert data.y is not None
    assert data.y.tolist() == [7, 2, 1]


@pytest.mark.parametrize("kind", ["U9", "S9"])
def test_labels_that_are_names_are_places_among_the_names_of_the_file(
    tmp_path: Path, kind: str
) -> None:
    y = np.array(["yes", "no", "yes", "perhaps"]).astype(kind)
    path = npz(tmp_path / "a.npz", x=np.zeros((4, 2)), y=y)
    data = read_source("npz", {"file": path}, None, "all", BOUNDS, ["yes", "perhaps", "no"])
    assert data.y is not None
    assert data.y.tolist() == [0, 2, 0, 1]
    np.save(tmp_path / "x.npy", np.zeros((4, 2)))
    np.save(tmp_path / "y.npy", y[:, None])
    pair = {"file": tmp_path / "x.npy", "labels": tmp_path / "y.npy"}
    data = read_source("npy", pair, None, [3], BOUNDS, ["yes", "perhaps", "no"])
    assert data.y is not None
    assert data.y.tolist() == [1]
    for names, words, told in (
        ((), "does not name its classes", "return_inverse"),
        ((), "does not name its classes", "0 is 'no', 1 is 'perhaps', 2 is 'yes'"),
        (["yes", "no"], "'perhaps' is none", "0 is 'yes', 1 is 'no'"),
    ):
        with pytest.raises(DataError, match=words) as caught:
            read_source("npz", {"file": path}, None, "all", BOUNDS, names)
        assert caught.value.code == "unknown_label"
        assert told in (caught.value.hint or "")
    rows = npz(tmp_path / "b.npz", x=np.zeros((2, 2)), y=y.reshape(2, 2))
    with pytest.raises(DataError, match="one name each"):
        read_source("npz", {"file": rows}, None, "all", BOUNDS, ["yes", "perhaps", "no"])


@pytest.mark.parametrize("y", [np.array([True, False, True]), np.array([1.0, 0.0, 1.0])])
def test_labels_that_are_truths_or_whole_floats_are_numbers(tmp_path: Path, y: Any) -> None:
    data = read_npz(npz(tmp_path / "a.npz", x=np.zeros((3, 2)), y=y), "all", BOUNDS)
    assert data.y is not None
    assert data.y.tolist() == [1, 0, 1]


def test_labels_that_count_from_one_are_told_so() -> None:
    for y, words in (([1, 2, 3], "count from 1"), ([0, 2, 3], "numbered from 0")):
        data = DataSet(np.zeros((3, 2)), np.array(y), np.arange(3), 3)
        with pytest.raises(DataError) as caught:
            check_labels(data, 3, of="network")
        assert words in (caught.value.hint or "")
