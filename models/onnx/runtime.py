"""The uploaded ONNX file as it is deployed: ONNX Runtime on CPU, graph optimisations off."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from models.errors import ModelError
from models.layers.kinds import Shape
from models.onnx.importer import input_signature, refuse_unknown_operators
from models.onnx.output import cut_final_operator
from models.onnx.safety import parse_onnx
from models.onnx.session import failure, open_session

__all__ = ["OnnxRuntimeModel"]


class OnnxRuntimeModel:
    """float32 [N, *input_shape] -> float32 logits [N, classes], run by ONNX Runtime.

    The session sees re-serialised bytes that ``parse_onnx`` has searched: no external data, no
    operators beside the supported ones, the CPU provider alone. A Softmax or LogSoftmax at the
    very end is cut off (``dropped_output`` names it): the logits are what goes into it. A graph
    whose batch is fixed to 1 runs one by one, and so does one that refused a batch before.
    ``input_shape`` may be the graph's own or differ from it by axes of size 1 or by a row-major
    flattening. Raises ModelError.
    """

    def __init__(
        self, source: bytes | Path, input_shape: Iterable[int], *, threads: int = 1
    ) -> None:
        model = parse_onnx(source if isinstance(source, bytes) else source.read_bytes())
        final = cut_final_operator(model.graph)
        self.dropped_output = None if final is None else final.node.op_type
        refuse_unknown_operators(model.graph)
        #: 1: rows are run one by one; None: together.
        self.batch: int | None
        self.batch, self.graph_shape, self._input = input_signature(model.graph)
        self.input_shape: Shape = tuple(input_shape)
        if not _same_order(self.input_shape, self.graph_shape):
            raise ModelError(
                f"inputs of shape {self.input_shape} do not fit the graph's {self.graph_shape}",
                code="shape_mismatch",
            )
        try:
            self._session = open_session(model.SerializeToString(), threads=threads)
        except Exception as error:
            raise failure("ONNX Runtime refuses the model", error) from error

    def __call__(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        """Logits [N, classes] of inputs [N, *input_shape]."""
        if x.dtype != np.float32 or x.shape[1:] != self.input_shape:
            raise ModelError(
                f"inputs are {x.dtype} {x.shape}, not float32 [N, {self.input_shape}]",
                code="shape_mismatch",
            )
        x = np.ascontiguousarray(x.reshape(len(x), *self.graph_shape))
        if self.batch is None and len(x) > 1:
            logits = self._together(x)
            if logits is not None:
                return logits
            self.batch = 1
        rows = [self._run(x[index : index + 1]).reshape(1, -1) for index in range(len(x))]
        return np.concatenate(rows) if rows else np.empty((0, 0), dtype=np.float32)

    def _together(self, x: NDArray[np.float32]) -> NDArray[np.float32] | None:
        """All at once; None where a graph with a symbolic batch runs only one by one.

        Some files declare a symbolic batch and then view everything as [1, ...].
        """
        try:
            logits = self._run(x)
        except ModelError:
            return None
        return logits.reshape(len(x), -1) if logits.shape[:1] == (len(x),) else None

    def _run(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        try:
            (logits,) = self._session.run(None, {self._input: x})
        except Exception as error:
            raise failure("ONNX Runtime cannot run the model", error) from error
        if not isinstance(logits, np.ndarray) or logits.dtype != np.float32:
            raise ModelError("the output is not float32", code="unsupported_dtype")
        return logits


def _same_order(first: Shape, second: Shape) -> bool:
    """Whether both shapes certainly hold the same numbers in the same row-major order."""

    def bare(shape: Shape) -> Shape:
        return tuple(size for size in shape if size != 1)

    if math.prod(first) != math.prod(second):
        return False
    return bare(first) == bare(second) or min(len(bare(first)), len(bare(second))) <= 1
