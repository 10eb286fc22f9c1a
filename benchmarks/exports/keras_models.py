"""Writes Keras models as ONNX files into a folder, for ``benchmarks.exports.taken``.

``python benchmarks/exports/keras_models.py FOLDER``, in an environment of its own with
``pip install tensorflow-cpu tf2onnx``: nothing of the project is needed there.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def models(keras: Any) -> Iterator[tuple[str, Any]]:
    """Small classifiers in the usual styles of Keras."""
    layers = keras.layers
    dense = [layers.Dense(32, activation="relu"), layers.Dense(3, activation="softmax")]
    yield "dense", keras.Sequential([layers.Input((16,)), *dense])
    flat = [layers.Flatten(), layers.Dense(64, activation="relu"), layers.Dropout(0.2)]
    yield "mnist", keras.Sequential([layers.Input((28, 28)), *flat, layers.Dense(10)])
    convolutions = [
        layers.Rescaling(1 / 255),
        layers.Conv2D(8, 3, activation="relu"),
        layers.MaxPooling2D(),
        layers.Conv2D(16, 3, padding="same", strides=2),
        layers.BatchNormalization(),
        layers.ReLU(),
    ]
    head = [layers.Flatten(), layers.Dense(10, activation="softmax")]
    yield "cifar", keras.Sequential([layers.Input((32, 32, 3)), *convolutions, *head])
    separable = [
        layers.SeparableConv2D(8, 3, activation="relu6"),
        layers.AveragePooling2D(),
        layers.GlobalMaxPooling2D(),
        layers.Dense(1, activation="sigmoid"),
    ]
    yield "separable, one sigmoid", keras.Sequential([layers.Input((16, 16, 3)), *separable])
    line = [layers.Conv1D(4, 3, activation="relu"), layers.GlobalAveragePooling1D()]
    yield "line", keras.Sequential([layers.Input((24, 2)), *line, layers.Dense(3)])
    x = start = layers.Input((16, 16, 3))
    x = layers.Conv2D(8, 3, padding="same", activation="relu")(x)
    branch = layers.BatchNormalization()(layers.Conv2D(8, 3, padding="same")(x))
    x = layers.Activation("relu")(layers.add([x, branch]))
    x = layers.concatenate([x, layers.Conv2D(4, 1)(x)])
    x = layers.Dense(10, activation="softmax")(layers.GlobalAveragePooling2D()(x))
    yield "residual and concatenated", keras.Model(start, x)
    x = layers.ZeroPadding2D()(start)
    x = layers.DepthwiseConv2D(3, strides=2, use_bias=False)(x)
    x = layers.LeakyReLU()(layers.BatchNormalization()(x))
    x = layers.UpSampling2D()(layers.Conv2DTranspose(4, 2, strides=2)(x))
    x = layers.Dense(3)(layers.GlobalAveragePooling2D()(x))
    yield "transposed and padded", keras.Model(start, x)
    words = [layers.Dense(16, activation=kind) for kind in ("tanh", "sigmoid", "softplus")]
    yield "smooth", keras.Sequential([layers.Input((16,)), *words, layers.Dense(3)])
    newer = [layers.Dense(16, activation=kind) for kind in ("elu", "selu", "gelu", "silu")]
    yield "newer activations", keras.Sequential([layers.Input((16,)), *newer, layers.Dense(3)])


def main() -> None:
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    keras = importlib.import_module("keras")
    keras.utils.set_random_seed(0)
    tensorflow = importlib.import_module("tensorflow")
    convert = importlib.import_module("tf2onnx").convert
    for name, model in models(keras):
        shape = (None, *model.inputs[0].shape[1:])

        @tensorflow.function(input_signature=[tensorflow.TensorSpec(shape, name="input_1")])
        def run(x: Any, model: Any = model) -> Any:
            return model(x, training=False)

        convert.from_function(
            run, input_signature=run.input_signature, output_path=str(folder / f"{name}.onnx")
        )
        print(name)


if __name__ == "__main__":
    main()
