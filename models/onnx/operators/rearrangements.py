"""ONNX operators that move numbers between places and channels, as reshapes and a permutation."""

from __future__ import annotations

from models.layers.kinds import Permute, Reshape
from models.onnx.graph import Activation, Operation, Translation

__all__ = ["depth_to_space", "space_to_depth"]


def space_to_depth(operation: Operation, translation: Translation) -> Activation:
    """SpaceToDepth: [c, h, w] -> [b b c, h / b, w / b], channels as (row, column, c)."""
    x, block = _image_and_block(operation)
    channels, height, width = x.shape
    if height % block or width % block:
        operation.refuse(f"blocks of {block} do not divide {height} x {width}")
    views = (channels, height // block, block, width // block, block)
    x = translation.emit(operation, Reshape(shape=views), x)
    x = translation.emit(operation, Permute(axes=(2, 4, 0, 1, 3)), x)
    shape = (channels * block**2, height // block, width // block)
    return translation.emit(operation, Reshape(shape=shape), x)


def depth_to_space(operation: Operation, translation: Translation) -> Activation:
    """DepthToSpace, its inverse: channels as (row, column, c), or as (c, row, column): CRD."""
    x, block = _image_and_block(operation)
    channels, height, width = x.shape
    if channels % block**2:
        operation.refuse(f"blocks of {block} do not divide {channels} channels")
    left = channels // block**2
    mode = operation.attributes.get("mode", b"DCR").decode(errors="replace")
    orders = {
        "DCR": ((block, block, left, height, width), (2, 3, 0, 4, 1)),
        "CRD": ((left, block, block, height, width), (0, 3, 1, 4, 2)),
    }
    if mode not in orders:
        operation.refuse(f"mode {mode!r} is not supported", code="invalid_onnx")
    views, axes = orders[mode]
    x = translation.emit(operation, Reshape(shape=views), x)
    x = translation.emit(operation, Permute(axes=axes), x)
    return translation.emit(operation, Reshape(shape=(left, height * block, width * block)), x)


def _image_and_block(operation: Operation) -> tuple[Activation, int]:
    x, block = operation.activation(), int(operation.attributes["blocksize"])
    if len(x.shape) != 3:
        operation.refuse(f"only images [batch, c, h, w] are supported, not rank {x.rank}")
    if not 1 <= block <= max(x.shape):
        operation.refuse(f"blocksize = {block}", code="invalid_onnx")
    return x, block
