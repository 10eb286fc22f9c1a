"""The uploaded ONNX file as it is deployed: ONNX Runtime on CPU, graph optimisations off."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from models.errors import ModelError
from models.layers.kinds import Shape
from models.onnx.forms.plain import plain_form
from models.onnx.forms.signature import signature_for
from models.onnx.importer import refuse_unknown_operators
from models.onnx.session import failure, open_session

__all__ = ["OnnxRuntimeModel"]


class OnnxRuntimeModel:
    """float32 [N, *input_shape] -> float32 logits [N, classes], run by ONNX Runtime.

    The session sees the re-serialised plain form (``models.onnx.forms``): no external data, no
    operators beside the supported ones, the CPU provider alone. What only makes another form of the
    answer at the very end is cut off (``dropped_output`` names it): the logits are what goes into
    it. A graph whose batch is fixed to 1, or that has no batch axis, runs one by one, and so does
    one that refused a batch before; one whose batch is fixed to more runs filled up to it.
    plain: ``source`` is such a plain form, of which nothing more is cut off.
    ``input_shape`` may be the graph's own or differ from it by axes of size 1 or by a row-major
    flattening. Raises ModelError.
    """

    def __init__(
        self,
        source: bytes | Path,
        input_shape: Iterable[int],
        *,
        threads: int = 1,
        plain: bool = False,
    ) -> None:
        data = source if isinstance(source, bytes) else source.read_bytes()
        form = plain_form(data, whole=plain)
        self.dropped_output = form.dropped
        refuse_unknown_operators(form.graph)
        self.input_shape: Shape = tuple(input_shape)
        self._signature = signature_for(form.graph, self.input_shape)
        #: Rows of each run; None: together.
        self.batch: int | None = self._signature.batch
        try:
            self._session = open_session(form.model.SerializeToString(), threads=threads)
        except Exception as error:
            raise failure("ONNX Runtime refuses the model", error) from error

    def __call__(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        """Logits [N, classes] of inputs [N, *input_shape]."""
        if x.dtype != np.float32 or x.shape[1:] != self.input_shape:
            raise ModelError(
                f"inputs are {x.dtype} {x.shape}, not float32 [N, {self.input_shape}]",
                code="shape_mismatch",
            )
        x = np.ascontiguousarray(x.reshape(len(x), *self._signature.shape))
        if self.batch is None and len(x) > 1:
            logits = self._together(x)
            if logits is not None:
                return logits
            self.batch = 1
        step = self.batch or 1
        blocks = [self._block(x[start : start + step]) for start in range(0, len(x), step)]
        return np.concatenate(blocks) if blocks else np.empty((0, 0), dtype=np.float32)

    def _block(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        """Rows of one run, the last of them again where there are fewer than the file takes."""
        rows = len(x)
        fixed = self._signature.batch or rows
        if rows < fixed:
            x = np.concatenate([x, np.repeat(x[-1:], fixed - rows, axis=0)])
        logits = self._run(x.reshape(self._signature.of_graph(len(x))))
        return logits.reshape(fixed, -1)[:rows]

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
            (logits,) = self._session.run(None, {self._signature.name: x})
        except Exception as error:
            raise failure("ONNX Runtime cannot run the model", error) from error
        if not isinstance(logits, np.ndarray) or logits.dtype != np.float32:
            raise ModelError("the output is not float32", code="unsupported_dtype")
        return logits
