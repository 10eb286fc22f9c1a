"""Where the samples of a job come from: one reader per kind of data set source."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from workers.jobs.datasets.arrays import (
    Bounds,
    DataError,
    DataSet,
    Selection,
    choose,
    read_exactly,
    read_npy,
    read_npz,
)
from workers.jobs.datasets.idx import read_idx
from workers.jobs.datasets.images import read_class_folders, read_image_folder
from workers.jobs.datasets.tiny_imagenet import read_tiny_imagenet

__all__ = ["SourceFiles", "read_source"]

#: Role -> file or folder of a source (``file``, ``images``, ``labels``, ``folder``).
SourceFiles = Mapping[str, Path]

#: Of scikit-learn's 1797 digits the last 500 are the test split.
DIGITS_TEST = 500


def read_source(
    kind: str,
    files: SourceFiles,
    split: str | None,
    selection: Selection,
    bounds: Bounds,
    names: Sequence[str] = (),
) -> DataSet:
    """The samples asked for, of a source of ``DatasetSource.kind``; ``names``: of the classes, by
    which arrays may call them. Raises DataError."""
    if kind == "npz":
        return read_npz(files["file"], selection, bounds, names=names)
    if kind == "npy":
        return read_npy(files["file"], files.get("labels"), selection, bounds, names=names)
    if kind not in _READERS:
        raise DataError("unsupported_format", f"data sets of kind {kind!r} are not read")
    return _READERS[kind](files, split or "test", selection, bounds)


def _images_zip(files: SourceFiles, split: str, selection: Selection, bounds: Bounds) -> DataSet:
    return read_class_folders(files["file"], selection, bounds)


def _images_folder(files: SourceFiles, split: str, selection: Selection, bounds: Bounds) -> DataSet:
    return read_image_folder(files["folder"], selection, bounds)


def _idx(files: SourceFiles, split: str, selection: Selection, bounds: Bounds) -> DataSet:
    return read_idx(files["images"], files.get("labels"), selection, bounds)


def _digits(files: SourceFiles, split: str, selection: Selection, bounds: Bounds) -> DataSet:
    """scikit-learn's 8x8 digits; their values 0..16 become k/16, which float32 holds exactly."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    part = slice(-DIGITS_TEST, None) if split == "test" else slice(None, -DIGITS_TEST)
    x = (digits.images[part] / 16.0).astype(np.float32)
    y = digits.target[part].astype(np.int64)
    return _subset(x, y, selection)


def _cifar_binary(files: SourceFiles, split: str, selection: Selection, bounds: Bounds) -> DataSet:
    """CIFAR-10 (one label byte) or CIFAR-100 (coarse, fine) binary batches; x [N, 3, 32, 32]."""
    folder = files["folder"]
    hundred = (folder / "train.bin").exists()
    prefix = 2 if hundred else 1
    rows = [_binary_rows(path, prefix + 3072) for path in _batches(folder, split, ".bin")]
    table = np.concatenate(rows)
    return _subset(table[:, prefix:].reshape(-1, 3, 32, 32), table[:, prefix - 1], selection)


def _binary_rows(path: Path, row: int) -> NDArray[np.uint8]:
    size = path.stat().st_size
    if size % row or size > 200 * 2**20:
        raise DataError("invalid_dataset", f"{path.name} is not a CIFAR binary batch")
    with path.open("rb") as file:
        return np.frombuffer(read_exactly(file, size), dtype=np.uint8).reshape(-1, row)


def _cifar_python(files: SourceFiles, split: str, selection: Selection, bounds: Bounds) -> DataSet:
    """CIFAR-10 or CIFAR-100 python batches, unpickled with nothing but numpy arrays allowed."""
    data: list[NDArray[np.uint8]] = []
    labels: list[int] = []
    for path in _batches(files["folder"], split, ""):
        try:
            with path.open("rb") as file:
                batch = _ArraysOnly(file, encoding="bytes").load()
            data.append(np.asarray(batch[b"data"], dtype=np.uint8).reshape(-1, 3, 32, 32))
            labels += batch[b"fine_labels" if b"fine_labels" in batch else b"labels"]
        except (pickle.UnpicklingError, KeyError, ValueError, EOFError) as error:
            raise DataError(
                "invalid_dataset", f"{path.name} is not a CIFAR batch: {error}"
            ) from error
    return _subset(np.concatenate(data), np.asarray(labels, dtype=np.int64), selection)


def _batches(folder: Path, split: str, suffix: str) -> list[Path]:
    """The files of a split; CIFAR-10 has five training batches, CIFAR-100 one."""
    names = ["test_batch", "test"] if split == "test" else ["data_batch_*", "train"]
    for name in names:
        found = sorted(folder.glob(name + suffix))
        if found:
            return found
    raise DataError("missing_data", f"the {split} split is not in the data source")


class _ArraysOnly(pickle.Unpickler):
    """Builds numpy arrays and plain values, and refuses every other name."""

    _ALLOWED = frozenset(
        {
            ("numpy.core.multiarray", "_reconstruct"),
            ("numpy._core.multiarray", "_reconstruct"),
            ("numpy", "ndarray"),
            ("numpy", "dtype"),
        }
    )

    def __init__(self, file: IO[bytes], **options: Any) -> None:
        super().__init__(file, **options)

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self._ALLOWED:
            raise pickle.UnpicklingError(f"{module}.{name} is not allowed in a batch")
        return super().find_class(module.replace("numpy.core", "numpy._core"), name)


def _subset(x: NDArray[Any], y: NDArray[Any], selection: Selection) -> DataSet:
    if len(x) != len(y):
        raise DataError("label_mismatch", f"{len(x)} samples but {len(y)} labels")
    indices = choose(selection, len(x))
    return DataSet(x[indices], y[indices].astype(np.int64), indices, len(x))


def _tiny_imagenet(files: SourceFiles, split: str, selection: Selection, bounds: Bounds) -> DataSet:
    return read_tiny_imagenet(files["folder"], split, selection, bounds)


_READERS: dict[str, Callable[[SourceFiles, str, Selection, Bounds], DataSet]] = {
    "images_zip": _images_zip,
    "images_folder": _images_folder,
    "idx": _idx,
    "digits": _digits,
    "cifar_binary": _cifar_binary,
    "cifar_python": _cifar_python,
    "tiny_imagenet": _tiny_imagenet,
}
