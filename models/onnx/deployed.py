"""The network as it will be deployed: the normalisation in float32, then ONNX Runtime on a CPU."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from models.network import per_channel
from models.onnx.runtime import OnnxRuntimeModel

__all__ = ["Batch", "DeployedNetwork"]

#: The batches that a file is deployed with: of any size, or of so many rows (1: one at a time).
Batch = Literal["any"] | int

#: Samples per call of ONNX Runtime, and numbers that one value of them may be (256 MB).
BATCH, NUMBERS = 256, 2**26


class DeployedNetwork:
    """float32 inputs [N, *input_shape] in pixel units -> float32 logits [N, classes].

    ``onnx``: a plain form (``models.onnx.forms.plain``), as ``ImportedOnnx.deployed`` is.
    ``normalization`` (mean and std, one value per channel or one for all) is applied before the
    ONNX graph; None where there is none or where the graph holds it already. ``largest``: numbers
    of the largest value of a sample on its way (``Network.largest``).
    """

    def __init__(
        self,
        onnx: bytes,
        input_shape: Sequence[int],
        normalization: Mapping[str, Sequence[float]] | None,
        *,
        largest: int = 1,
    ) -> None:
        self._rows = max(1, min(BATCH, NUMBERS // largest))
        self._model = OnnxRuntimeModel(onnx, tuple(input_shape), plain=True)
        self._mean = self._std = None
        if normalization is not None:
            shape = tuple(input_shape)
            self._mean = per_channel(normalization["mean"], shape).numpy()
            self._std = per_channel(normalization["std"], shape).numpy()

    def settle_batch(self, sizes: Sequence[int]) -> Batch:
        """Which batches the file takes: as many rows as it is fixed to, else one row at a time
        where it refuses a batch of one of these sizes. All later calls use the result.

        Some files declare a batch of any size and then view everything as [1, ...].
        """
        for size in sizes:
            self._logits(np.zeros((size, *self._model.input_shape), dtype=np.float32))
        return self.batch

    @property
    def batch(self) -> Batch:
        """Which batches the file takes, as far as is known by now."""
        return "any" if self._model.batch is None else self._model.batch

    def one_by_one(self) -> None:
        """Run every row alone from now on."""
        self._model.batch = 1

    def __call__(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        """Logits, in batches of bounded size."""
        rows = self._rows
        return np.concatenate([self._logits(x[i : i + rows]) for i in range(0, len(x), rows)])

    def given(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        """What the ONNX graph is given for these inputs, of the same shape."""
        if self._mean is not None and self._std is not None:
            x = (x - self._mean) / self._std
        return np.ascontiguousarray(x)

    def _logits(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        return np.asarray(self._model(self.given(x)), dtype=np.float32)
