"""The format of an upload, by the suffix of its file name."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

from service.contract.schemas.problems import Unsupported

__all__ = ["format_of"]

Format = TypeVar("Format", bound=str)

_KERAS = 'of Keras: model.export("model.onnx", format="onnx")'
_SCIKIT = (
    "of scikit-learn: skl2onnx.to_onnx(model, X[:1].astype(numpy.float32)), written with "
    'open("model.onnx", "wb").write(onnx_model.SerializeToString())'
)
_TENSORFLOW = "of TensorFlow: python -m tf2onnx.convert, which writes an ONNX file"
_TORCH = (
    'of PyTorch: torch.save(model.state_dict(), "model.pt"), or '
    'torch.onnx.export(model, x[:1], "model.onnx", dynamo=True, external_data=False)'
)
_TABLE = (
    'of pandas: numpy.savez("data.npz", x=df.drop(columns="label").to_numpy(numpy.float32), '
    'y=df["label"].to_numpy())'
)
_ARRAYS = 'numpy.savez("data.npz", x=x, y=y), of arrays of samples and of class numbers'
_TENSORS = 'numpy.savez("data.npz", x=images.numpy(), y=labels.numpy())'
_FOLDERS = "images are sent as a .zip of folders, one for each class"

#: What -> suffix -> what to do with a file that has another format.
_INSTEAD: dict[str, dict[str, str]] = {
    "model": {
        **dict.fromkeys((".keras", ".h5", ".hdf5"), _KERAS),
        **dict.fromkeys((".pkl", ".pickle", ".joblib", ".skops"), _SCIKIT),
        **dict.fromkeys((".pb", ".tflite"), _TENSORFLOW),
        **dict.fromkeys((".ckpt", ".pt2", ".bin", ".tar", ".mar"), _TORCH),
        **dict.fromkeys((".npz", ".npy", ".csv"), "is this the data set? It is sent as dataset"),
    },
    "data set": {
        **dict.fromkeys((".csv", ".tsv", ".xlsx", ".parquet", ".feather", ".arff"), _TABLE),
        **dict.fromkeys((".mat", ".h5", ".hdf5", ".pkl", ".pickle", ".txt", ".json"), _ARRAYS),
        **dict.fromkeys((".pt", ".pth", ".safetensors"), _TENSORS),
        **dict.fromkeys((".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tar", ".tgz"), _FOLDERS),
        ".onnx": "is this the model? It is sent as model",
    },
}


def format_of(filename: str, formats: Mapping[str, Format], *, noun: str, field: str) -> Format:
    """The format that the suffix stands for; ``noun``: what the file is. Raises Unsupported, with
    what to do about other formats that are usual."""
    suffix = Path(filename).suffix.lower()
    found = formats.get(suffix)
    if found is None:
        known = f"known suffixes: {', '.join(formats)}"
        instead = _INSTEAD.get(noun, {}).get(suffix)
        raise Unsupported(
            f"the suffix of {filename[:200]!r} names no known {noun} format",
            hint=known if instead is None else f"{instead}; {known}",
            field=field,
        )
    return found
