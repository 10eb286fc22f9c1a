"""The first level below the common root is the class; what can be read in two ways is refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.contract.class_folders import class_folders
from service.contract.schemas.problems import InvalidInput

NAMES = st.text("abcXYZ019_ é", min_size=1, max_size=6).filter(lambda name: name.strip() == name)


def labels(*paths: str) -> list[int]:
    return class_folders(paths).labels


@given(
    st.sets(NAMES, min_size=2, max_size=6).filter(
        lambda names: (
            len({name.casefold() for name in names}) == len(names)
            and not all(name.isdecimal() for name in names)
        )
    ),
    st.sampled_from(["", "set/", "a/b/"]),
    st.sampled_from(["", "images/", "x/y/"]),
)
def test_a_root_above_and_one_folder_below_change_no_label(
    names: set[str], above: str, below: str
) -> None:
    found = class_folders([f"{above}{name}/{below}{n}.png" for name in names for n in range(2)])
    assert found.classes == {name: place for place, name in enumerate(sorted(names))}
    for image, label in zip(found.images, found.labels, strict=True):
        assert found.classes[image.removeprefix(above).split("/")[0]] == label
    assert found.warnings == []


def test_what_is_hidden_is_no_image_and_other_files_are_told() -> None:
    found = class_folders(
        ["cat/1.png", "dog/2.PNG", "__MACOSX/cat/._1.png", "cat/.thumb/1.png", "dog/Thumbs.db"]
        + ["readme.txt", "cat/notes.json"]
    )
    assert found.images == ["cat/1.png", "dog/2.PNG"]
    assert found.classes == {"cat": 0, "dog": 1}
    assert found.warnings == [
        "2 files of the data set are not images and were left out: cat/notes.json, readme.txt."
    ]


def test_numbers_are_labels_and_where_text_order_differs_it_is_told() -> None:
    found = class_folders(f"{label}/a.png" for label in range(10))
    assert found.classes == {str(label): label for label in range(10)}
    assert found.warnings == []
    found = class_folders(f"{label}/a.png" for label in range(12))
    assert found.classes == {str(label): label for label in range(12)}
    assert "folder 10 is class 10" in found.warnings[0]
    assert "class 2" in found.warnings[0]
    assert labels("10/a.png", "3/a.png") == [10, 3]


def test_train_is_a_class_beside_others() -> None:
    assert labels("bus/1.png", "train/1.png") == [0, 1]
    assert labels("train/bus/1.png", "train/car/1.png") == [0, 1]


def test_a_single_class() -> None:
    assert class_folders(["cat/1.png", "cat/2.png"]).classes == {"cat": 0}


@pytest.mark.parametrize(
    ("paths", "code"),
    [
        ([], "empty_dataset"),
        (["cat/notes.txt"], "empty_dataset"),
        (["1.png"], "invalid_dataset"),
        (["1.png", "cat/1.png"], "invalid_dataset"),
        (["set/1.png", "set/cat/1.png", "set/dog/1.png"], "invalid_dataset"),
        (["train/cat/1.png", "train/dog/1.png", "test/cat/1.png"], "ambiguous_split"),
        (["d/train/cat/1.png", "d/val/cat/1.png"], "ambiguous_split"),
        (["Train/1.png", "test/1.png"], "ambiguous_split"),
        (["train/cat/1.png", "extra/cat/1.png"], "ambiguous_split"),
        (["a/cat/1.png", "a/dog/1.png", "b/cat/1.png"], "ambiguous_classes"),
        (["x/zebra/1.png", "y/apple/1.png"], "ambiguous_classes"),
        (["cat/1.png", "dog/images/1.png"], "ambiguous_classes"),
        (["cat/1.png", "cat/more/2.png", "dog/1.png"], "ambiguous_classes"),
        (["set/cat/1.png", "set/cat/2.png"], "ambiguous_classes"),
        (["cat/1.png", "Cat/2.png"], "ambiguous_classes"),
        (["é/1.png", "e\u0301/2.png"], "ambiguous_classes"),
        (["1/a.png", "01/a.png"], "ambiguous_classes"),
        (["cat/1.png", "cat//1.png"], "duplicate_name"),
        (["cat/1.png", "dog/1.tif"], "unsupported_image"),
        (["cat/1.png", "dog/1.gif"], "unsupported_image"),
        (["cat/1.png", "dog/readme.txt"], "empty_class"),
    ],
)
def test_refused_with_what_to_do(paths: list[str], code: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        class_folders(paths)
    assert caught.value.code == code
    assert caught.value.hint


def test_a_stated_folder_without_images_would_shift_the_numbers() -> None:
    with pytest.raises(InvalidInput) as caught:
        class_folders(["s/cat/1.png", "s/elk/1.png"], ["s/", "s/cat/", "s/dog/", "s/elk/"])
    assert caught.value.code == "empty_class"
    whole = class_folders(["s/cat/i/1.png", "s/elk/i/1.png"], ["s/", "s/cat/", "s/cat/i/", "s/.x/"])
    assert whole.labels == [0, 1]
