"""The named architectures a state dict may be loaded into, as GET /architectures lists them.

The layers are in ``models/architectures/published.py``, which the API must not import; a test keeps
both tables equal.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["ARCHITECTURES", "CHOICES", "FAMILIES", "NamedArchitecture"]


@dataclass(frozen=True)
class NamedArchitecture:
    """Name, input shape without the batch, number of classes, and a line for a person."""

    name: str
    input_shape: tuple[int, ...]
    classes: int
    summary: str


_SMALL = "conv(16,4,2,1) conv(32,4,2,1) fc100 fc10"
_4C3F = "conv(32,3,1,1) conv(32,4,2,1) conv(64,3,1,1) conv(64,4,2,1) fc512 fc512 fc10"
_6C2F = "conv(32,3,1,1)x2 conv(32,4,2,1) conv(64,3,1,1)x2 conv(64,4,2,{}) fc512 fc10"
_8C2F = (
    "conv(64,3,1,1)x2 conv(64,4,2,0) conv(128,3,1,1)x2 conv(128,4,2,0) "
    "conv(256,3,1,1) conv(256,4,2,0) fc256 fc200"
)
_CNN5 = "normalize conv(16,3,1,1) conv(16,4,2,1) conv(32,4,2,1) fc512 fc10, batch norm"
_CNN7 = "normalize conv(64,3,1,1)x2 conv(128,3,2,1) conv(128,3,1,1)x2 fc512 fc10, batch norm"

_ROWS = (
    NamedArchitecture("mnist-small", (1, 28, 28), 10, _SMALL),
    NamedArchitecture("cifar-small", (3, 32, 32), 10, _SMALL),
    NamedArchitecture("mnist-4c3f", (1, 28, 28), 10, _4C3F),
    NamedArchitecture("cifar-4c3f", (3, 32, 32), 10, _4C3F),
    NamedArchitecture("cifar-6c2f", (3, 32, 32), 10, _6C2F.format(1)),
    NamedArchitecture("cifar-6c2f-nopad", (3, 32, 32), 10, _6C2F.format(0)),
    NamedArchitecture("tiny-8c2f", (3, 64, 64), 200, _8C2F),
    NamedArchitecture("mnist-convmed", (1, 28, 28), 10, "conv(32,5,2,2) conv(64,4,2,1) fc100 fc10"),
    NamedArchitecture(
        "cifar-convmed", (3, 32, 32), 10, "conv(32,5,2,2) conv(128,4,2,1) fc250 fc10"
    ),
    NamedArchitecture(
        "cifar-convmedbig",
        (3, 32, 32),
        10,
        "conv(32,3,1,1) conv(32,4,2,1) conv(128,4,2,1) fc250 fc10",
    ),
    NamedArchitecture(
        "mnist-convmed-normalized",
        (1, 28, 28),
        10,
        "pixels normalised, conv(32,5,2,2) conv(64,4,2,1) fc100 fc10",
    ),
    NamedArchitecture(
        "cifar-convmed-normalized",
        (3, 32, 32),
        10,
        "pixels normalised, conv(32,5,2,2) conv(128,4,2,1) fc250 fc10",
    ),
    NamedArchitecture(
        "cifar-convmedbig-normalized",
        (3, 32, 32),
        10,
        "pixels normalised, conv(32,3,1,1) conv(32,4,2,1) conv(128,4,2,1) fc250 fc10",
    ),
    NamedArchitecture(
        "cifar-small-normalized", (3, 32, 32), 10, f"pixels normalised alike, {_SMALL}"
    ),
    NamedArchitecture(
        "cifar-4c3f-normalized", (3, 32, 32), 10, f"pixels normalised alike, {_4C3F}"
    ),
    NamedArchitecture("mnist-cnn5-bn", (1, 28, 28), 10, _CNN5),
    NamedArchitecture("cifar-cnn5-bn", (3, 32, 32), 10, _CNN5),
    NamedArchitecture("mnist-cnn7-bn", (1, 28, 28), 10, _CNN7),
    NamedArchitecture("cifar-cnn7-bn", (3, 32, 32), 10, _CNN7),
)

#: Architectures by name, in the order of the table.
ARCHITECTURES: dict[str, NamedArchitecture] = {row.name: row for row in _ROWS}

#: Members of the architectures with sizes, {"name": "liresnet", "depth": 12, ...}.
FAMILIES: dict[str, tuple[str, ...]] = {
    "cap-resnet": ("input", "classes", "blocks", "width", "mean", "std"),
    "lipconvnet": (
        *("input", "classes", "depth", "blocks", "width", "layer", "pooling", "head", "hidden"),
        *("degree", "mean", "std"),
    ),
    "liresnet": ("input", "classes", "depth", "width", "dense_width", "dense_depth"),
    "orthogonal-dense": ("input", "classes", "widths", "head"),
    "shiftnet": ("input", "classes", "width", "depths", "patch", "mean"),
}

#: What a member of a family may be, where it is one of a few words.
CHOICES: dict[str, dict[str, tuple[str, ...]]] = {
    "lipconvnet": {
        "head": ("crc", "lln", "orthogonal"),
        "layer": ("aol", "bro", "cholesky", "cpl", "sll", "soc"),
        "pooling": ("max", "projection"),
    },
    "orthogonal-dense": {"head": ("linear", "lln")},
}
