"""Which data a submission means: an uploaded data set, or a registered name in a public layout.

Only file names are checked here; a worker reads the images.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from service.contract.ids import digest_hex
from service.contract.schemas.problems import InvalidInput
from service.contract.schemas.submissions import DatasetSource
from service.contract.settings import Settings
from service.contract.storage.store import Store

__all__ = ["REGISTERED", "Split", "resolve_dataset", "uploaded_source"]

Split = Literal["test", "train"]
_Finder = Callable[[Path, Split], DatasetSource | None]


def resolve_dataset(
    text: str,
    store: Store,
    settings: Settings,
    *,
    names: Callable[[dict[str, Any]], list[str]] = lambda record: list(record["names"]),
    split: Split = "test",
    field: str = "dataset",
) -> DatasetSource:
    """The data behind an id (``sha256:...``) or a name (``mnist``, ``mnist:train``).

    A name means, in this order: a data set uploaded under it, a public layout in one of the
    folders of CERTSERVE_DATA_SOURCES. ``names`` gives the names of an upload's record that
    count, none where it is not the caller's. Raises InvalidInput ``unknown_dataset``, which says
    where it looked.
    """
    if digest_hex(text) is not None:
        record = store.record("datasets", text)
        if record is None or not names(record):
            raise InvalidInput(
                f"there is no data set {text}",
                code="unknown_dataset",
                hint="upload it first (POST /datasets), or send the file in the field dataset",
                field=field,
            )
        return uploaded_source(record)
    name, _, named_split = text.partition(":")
    if named_split:
        if named_split not in ("test", "train"):
            raise InvalidInput(
                f"the split must be test or train, not {named_split[:50]!r}",
                code="unknown_dataset",
                field=field,
            )
        split = "train" if named_split == "train" else "test"
    wanted = {f"{name}:{split}", *({name} if split == "test" else ())}
    for record in store.records("datasets"):
        if wanted & set(names(record)):
            return uploaded_source(record)
    looked = ["uploaded data sets of that name"]
    for finder in REGISTERED.get(name, ()):
        if finder is _digits:
            return DatasetSource(kind="digits", name=name, split=split)
        for folder in settings.data_sources:
            found = finder(folder, split)
            if found is not None:
                return found
    looked += [str(folder) for folder in settings.data_sources] or ["no folder"]
    raise InvalidInput(
        f"there is no data set {text[:100]!r} ({split} split); looked in: {', '.join(looked)}",
        code="unknown_dataset",
        hint="upload it (POST /datasets) and give its name or id; or name a folder that holds the "
        f"public files of one of {', '.join(REGISTERED)} in CERTSERVE_DATA_SOURCES",
        field=field,
    )


def uploaded_source(record: dict[str, object]) -> DatasetSource:
    """The source of an uploaded data set, from its record in the store."""
    return DatasetSource.model_validate(
        {
            "kind": record["format"],
            "name": record["name"],
            "id": record["id"],
            "blobs": record["blobs"],
            "samples": record["samples"],
        }
    )


def _mnist(source: Path, split: Split) -> DatasetSource | None:
    prefix = "t10k" if split == "test" else "train"
    for folder in (source / "mnist", source):
        images = folder / f"{prefix}-images-idx3-ubyte.gz"
        labels = folder / f"{prefix}-labels-idx1-ubyte.gz"
        if images.is_file() and labels.is_file():
            paths = {"images": str(images), "labels": str(labels)}
            return DatasetSource(kind="idx", name="mnist", split=split, paths=paths)
    return None


def _npz(name: str) -> _Finder:
    def find(source: Path, split: Split) -> DatasetSource | None:
        for folder in (source, source / name):
            file = folder / f"{name}_{split}.npz"
            if file.is_file():
                return DatasetSource(kind="npz", name=name, split=split, paths={"file": str(file)})
        return None

    return find


def _folder(
    name: str,
    kind: Literal["cifar_python", "cifar_binary", "images_folder", "tiny_imagenet"],
    folder_name: str,
    marks: dict[Split, tuple[str, ...]],
) -> _Finder:
    """Finds ``folder_name`` that holds one of the marks of the split."""

    def find(source: Path, split: Split) -> DatasetSource | None:
        for folder in (source / folder_name, source / name / folder_name):
            for mark in marks[split]:
                if (folder / mark).exists():
                    where = folder / mark if kind == "images_folder" else folder
                    return DatasetSource(
                        kind=kind, name=name, split=split, paths={"folder": str(where)}
                    )
        return None

    return find


def _digits(_source: Path, split: Split) -> DatasetSource | None:
    return DatasetSource(kind="digits", name="digits", split=split)


_TREE: dict[Split, tuple[str, ...]] = {"test": ("test", "val"), "train": ("train",)}
_FILES: dict[Split, tuple[str, ...]] = {"test": ("test",), "train": ("train",)}
_BINARY: dict[Split, tuple[str, ...]] = {"test": ("test.bin",), "train": ("train.bin",)}
_BATCHES: dict[Split, tuple[str, ...]] = {"test": ("test_batch",), "train": ("data_batch_1",)}
_BATCHES_BINARY: dict[Split, tuple[str, ...]] = {
    "test": ("test_batch.bin",),
    "train": ("data_batch_1.bin",),
}


def _tiny_imagenet(source: Path, split: Split) -> DatasetSource | None:
    """``tiny-imagenet-200``, or a cut of it to fewer classes in the same layout."""
    mark = "val/val_annotations.txt" if split == "test" else "wnids.txt"
    for folder in (source, source / "tiny-imagenet"):
        cuts = {
            int(path.name.rpartition("-")[2]): path
            for path in folder.glob("tiny-imagenet-*")
            if path.name.rpartition("-")[2].isdecimal() and (path / mark).is_file()
        }
        if cuts:
            paths = {"folder": str(cuts[max(cuts)])}
            return DatasetSource(
                kind="tiny_imagenet", name="tiny-imagenet", split=split, paths=paths
            )
    return None


#: Registered names and their public layouts, in the order they are looked for.
REGISTERED: dict[str, tuple[_Finder, ...]] = {
    "mnist": (_mnist,),
    "cifar10": (
        _npz("cifar10"),
        _folder("cifar10", "cifar_python", "cifar-10-batches-py", _BATCHES),
        _folder("cifar10", "cifar_binary", "cifar-10-batches-bin", _BATCHES_BINARY),
        _folder("cifar10", "images_folder", "cifar10", _TREE),
    ),
    "cifar100": (
        _npz("cifar100"),
        _folder("cifar100", "cifar_python", "cifar-100-python", _FILES),
        _folder("cifar100", "cifar_binary", "cifar-100-binary", _BINARY),
        _folder("cifar100", "images_folder", "cifar100", _TREE),
    ),
    "tiny-imagenet": (
        _tiny_imagenet,
        _folder("tiny-imagenet", "images_folder", "tiny-imagenet", _TREE),
    ),
    "digits": (_digits,),
}
