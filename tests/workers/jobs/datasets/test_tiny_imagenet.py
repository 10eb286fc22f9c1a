"""TinyImageNet's public layout, on a small made-up tree."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from service.contract.settings import Settings
from service.contract.storage.store import Store
from service.uploads.dataset_sources import resolve_dataset
from workers.jobs.datasets.arrays import Bounds, DataError
from workers.jobs.datasets.sources import read_source

WNIDS = ["n03", "n01", "n02"]


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Three classes; class k is of brightness 20 k; one grey image; unlabelled test images."""
    folder = tmp_path / "tiny-imagenet-200"
    lines = []
    for wnid in WNIDS:
        value = 20 * int(wnid[1:])
        images = folder / "train" / wnid / "images"
        images.mkdir(parents=True)
        for place in range(2):
            grey = (wnid, place) == ("n01", 0)
            save(images / f"{wnid}_{place}.JPEG", value, "L" if grey else "RGB")
        (folder / "train" / wnid / f"{wnid}_boxes.txt").write_text("no image")
        (folder / "val" / "images").mkdir(parents=True, exist_ok=True)
        save(folder / "val" / "images" / f"val_{value}.JPEG", value, "RGB")
        lines.append(f"val_{value}.JPEG\t{wnid}\t0\t0\t62\t62")
    (folder / "val" / "val_annotations.txt").write_text("\n".join(lines) + "\n")
    (folder / "test" / "images").mkdir(parents=True)
    save(folder / "test" / "images" / "test_0.JPEG", 250, "RGB")
    (folder / "wnids.txt").write_text("\n".join(WNIDS) + "\n")
    return folder


def save(path: Path, value: int, mode: str) -> None:
    Image.new(mode, (64, 64), value if mode == "L" else (value, value, value)).save(path, "JPEG")


def test_both_splits_have_their_labels(tree: Path, tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path / "data", data_sources=(tree.parent,))
    store = Store(settings.data_dir)
    for split, count in (("train", 6), ("test", 3)):
        source = resolve_dataset("tiny-imagenet", store, settings, split=split)  # type: ignore[arg-type]
        assert source.kind == "tiny_imagenet"
        files = {role: Path(path) for role, path in source.paths.items()}
        data = read_source(source.kind, files, source.split, "all", Bounds())
        assert data.x.shape == (count, 64, 64, 3)
        assert data.y is not None
        # Labels follow the sorted wnids, images their labels.
        assert np.abs(data.x.astype(int).mean((1, 2, 3)) - 20 * (data.y + 1)).max() <= 2


def test_a_cut_to_fewer_classes_is_found_and_the_largest_counts(tree: Path, tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path / "data", data_sources=(tree.parent,))
    store = Store(settings.data_dir)

    def folder() -> str:
        return resolve_dataset("tiny-imagenet", store, settings, split="train").paths["folder"]

    cut = tree.rename(tree.parent / "tiny-imagenet-25")
    for other in ("tiny-imagenet-x", "tiny-imagenet-100"):
        (tree.parent / other).mkdir()
    assert folder() == str(cut)
    (tree.parent / "tiny-imagenet-3").mkdir()
    (tree.parent / "tiny-imagenet-3" / "wnids.txt").write_text("n01\nn02\nn03\n")
    assert folder() == str(cut)
    (tree.parent / "tiny-imagenet-100" / "wnids.txt").write_text("n01\nn02\n")
    assert folder() == str(tree.parent / "tiny-imagenet-100")


def test_a_selection_reads_those_images_only(tree: Path) -> None:
    data = read_source("tiny_imagenet", {"folder": tree}, "test", [2, 0], Bounds())
    assert data.y is not None
    assert data.y.tolist() == [1, 2]


def test_what_is_missing_is_said(tree: Path) -> None:
    (tree / "val" / "val_annotations.txt").write_text("../../etc/passwd\tn01\n")
    with pytest.raises(DataError, match="unreadable line"):
        read_source("tiny_imagenet", {"folder": tree}, "test", "all", Bounds())
    for image in (tree / "train" / "n02" / "images").iterdir():
        image.unlink()
    with pytest.raises(DataError, match="n02 has no training image"):
        read_source("tiny_imagenet", {"folder": tree}, "train", "all", Bounds())
    (tree / "wnids.txt").unlink()
    with pytest.raises(DataError, match=r"wnids\.txt"):
        read_source("tiny_imagenet", {"folder": tree}, "train", "all", Bounds())
