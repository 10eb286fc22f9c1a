"""Sessions of ONNX Runtime as everything here runs: on the CPU, graph optimisations off."""

from __future__ import annotations

import onnxruntime

from models.errors import ModelError

__all__ = ["failure", "open_session"]

#: ONNX Runtime's log level that leaves warnings about unused initializers out.
_FATAL_ONLY = 4


def open_session(model: bytes, *, threads: int = 1) -> onnxruntime.InferenceSession:
    """A session over an ONNX file's bytes. Raises what ONNX Runtime raises."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = _FATAL_ONLY
    options.enable_cpu_mem_arena = False
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def failure(sentence: str, error: Exception, *, code: str = "runtime_failed") -> ModelError:
    """A ModelError with the first line of what ONNX Runtime said."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return ModelError(f"{sentence}: {lines[0][:300]}", code=code)
