"""Which exports are taken, family by family, and why the others are not.

``python -m benchmarks.exports.taken [FOLDER ...]``: small networks as torch writes them,
with a fixed batch and a symbolic one; scikit-learn's classifiers where ``skl2onnx`` can be
imported; graphs as Keras' and the competitions' files are (``graphs``); and every ``*.onnx``
below the folders. One line per family, then one per file that is refused. A network of one output
that is no classifier is tried as one of which a property is asked.
"""

from __future__ import annotations

import argparse
import importlib
import io
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.exports.graphs import competition_like, keras_like
from models.errors import ModelError
from models.onnx.forms.plain import Asked
from models.onnx.importer import read_onnx_bytes

#: Activations of a dense network, each an export of its own.
ACTIVATIONS = (
    *(nn.ReLU, nn.Tanh, nn.Sigmoid, nn.Softplus, nn.LeakyReLU, nn.PReLU, nn.ReLU6, nn.Hardtanh),
    *(nn.Hardsigmoid, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU, nn.Mish, nn.Hardswish),
    nn.Softsign,
)


class _Residual(nn.Module):
    def __init__(self, *, gated: bool) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.second, self.last = nn.Conv2d(8, 8, 3, padding=1), nn.Linear(8, 10)
        self.gated = gated

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.first(x)))
        branch = self.second(x)
        x = x * torch.sigmoid(branch) if self.gated else x + torch.relu(branch)
        logits: Tensor = self.last(x.mean((2, 3)))
        return logits


def _dense(activation: nn.Module, *end: nn.Module, out: int = 3) -> nn.Module:
    return nn.Sequential(nn.Linear(16, 16), activation, nn.Linear(16, out), *end)


def _images(*layers: nn.Module, features: int) -> nn.Module:
    return nn.Sequential(*layers, nn.ReLU(), nn.Flatten(), nn.Linear(features, 10))


def torch_modules() -> Iterator[tuple[str, nn.Module, Tensor]]:
    """(name, module, an input) of every kind that is exported."""
    row, image = torch.rand(1, 16), torch.rand(1, 3, 32, 32)
    for kind in ACTIVATIONS:
        yield f"dense {kind.__name__}", _dense(kind()), row
    yield "dense LayerNorm", _dense(nn.LayerNorm(16)), row
    yield "dense, Softmax", _dense(nn.ReLU(), nn.Softmax(1)), row
    yield "dense, one Sigmoid", _dense(nn.ReLU(), nn.Sigmoid(), out=1), row
    yield "dense, no batch axis", _dense(nn.ReLU()), torch.rand(16)
    yield "convolutions", _images(nn.Conv2d(3, 8, 3, 2), nn.MaxPool2d(2), features=392), image
    yield "depthwise", _images(nn.Conv2d(3, 9, 3, 3, groups=3), features=900), image
    adaptive = nn.Sequential(nn.Conv2d(3, 8, 3), nn.AdaptiveAvgPool2d(1))
    yield "adaptive average", _images(adaptive, features=8), image
    adaptive = nn.Sequential(nn.Conv2d(3, 8, 3), nn.AdaptiveMaxPool2d(1))
    yield "adaptive maximum", _images(adaptive, features=8), image
    yield "transposed", _images(nn.ConvTranspose2d(3, 2, 2, 2), features=8192), image
    upsampled = nn.Sequential(nn.Upsample(scale_factor=2), nn.Conv2d(3, 4, 3, 4))
    yield "upsampled", _images(upsampled, features=1024), image
    padded = nn.Sequential(nn.ReflectionPad2d(1), nn.Conv2d(3, 4, 3, 2))
    yield "reflecting pads", _images(padded, features=1024), image
    yield "residual", _Residual(gated=False), image
    yield "gated", _Residual(gated=True), image
    line = nn.Sequential(nn.Conv1d(2, 4, 3), nn.ReLU(), nn.MaxPool1d(2), nn.Conv1d(4, 8, 3))
    yield (
        "1-d convolutions",
        _images(line, nn.AdaptiveAvgPool1d(1), features=8),
        torch.rand(1, 2, 24),
    )


class _Branches(nn.Module):
    """Squeeze, and two kernels side by side: SqueezeNet, Inception, DenseNet."""

    def __init__(self) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(3, 4, 1)
        self.one, self.three = nn.Conv2d(4, 8, 1), nn.Conv2d(4, 8, 3, padding=1)
        self.last = nn.Conv2d(20, 10, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.squeeze(x))
        wide = torch.cat([torch.relu(self.one(x)), torch.relu(self.three(x)), x], 1)
        pooled = nn.functional.max_pool2d(wide, 3, 2)
        return torch.flatten(nn.functional.adaptive_avg_pool2d(self.last(pooled), 1), 1)


def vision_modules() -> Iterator[tuple[str, nn.Module, Tensor]]:
    """Small relatives of well-known image classifiers."""
    grey, image = torch.rand(1, 1, 28, 28), torch.rand(1, 3, 32, 32)
    relu = nn.ReLU()
    lenet = (nn.Conv2d(1, 6, 5), nn.Tanh(), nn.AvgPool2d(2), nn.Conv2d(6, 16, 5), nn.Tanh())
    yield "LeNet", nn.Sequential(*lenet, nn.AvgPool2d(2), nn.Flatten(), nn.Linear(256, 10)), grey
    head = (nn.AdaptiveAvgPool2d((2, 2)), nn.Flatten(), nn.Dropout(), nn.Linear(32, 10))
    alex = (nn.Conv2d(3, 8, 5, 2, 2), relu, nn.MaxPool2d(2), nn.Conv2d(8, 8, 3, padding=1), relu)
    yield "AlexNet", nn.Sequential(*alex, *head), image
    vgg = (nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), relu, nn.MaxPool2d(2))
    yield "VGG", nn.Sequential(*vgg, *head), image
    mobile = (nn.Conv2d(3, 8, 1), nn.ReLU6(), nn.Conv2d(8, 8, 3, 2, 1, groups=8), nn.ReLU6())
    yield "MobileNet v2", nn.Sequential(*mobile, nn.Conv2d(8, 8, 1), *head), image
    yield "ResNet", _Residual(gated=False), image
    yield "SqueezeNet, Inception, DenseNet", _Branches(), image


def dynamo_exports() -> Iterator[tuple[str, bytes]]:
    """The same by PyTorch's newer exporter; none without ``onnxscript``."""
    try:
        importlib.import_module("onnxscript")
    except ImportError:
        return
    torch.manual_seed(0)
    for name, module, x in (*torch_modules(), *vision_modules()):
        shapes = ({0: torch.export.Dim.DYNAMIC},) if x.dim() > 1 else None
        program = torch.onnx.export(
            module.eval(), (x,), dynamo=True, dynamic_shapes=shapes, verbose=False
        )
        assert program is not None
        yield name, program.model_proto.SerializeToString()


def torch_exports() -> Iterator[tuple[str, bytes]]:
    """Each module with its batch fixed to 1, and with a symbolic one where it has a batch."""
    torch.manual_seed(0)
    for name, module, x in (*torch_modules(), *vision_modules()):
        for symbolic in (False, True)[: x.dim()]:
            stream = io.BytesIO()
            torch.onnx.export(
                module.eval(),
                (x,),
                stream,
                input_names=["x"],
                opset_version=17,
                dynamic_axes={"x": {0: "n"}} if symbolic else None,
                dynamo=False,
            )
            yield f"{name}{', symbolic batch' * symbolic}", stream.getvalue()


def scikit_learn_exports() -> Iterator[tuple[str, bytes]]:
    """Classifiers on iris, with a list of maps at the end and without; none without skl2onnx."""
    try:
        to_onnx = importlib.import_module("skl2onnx").to_onnx
    except ImportError:
        return
    from sklearn import datasets, linear_model, neural_network, pipeline, preprocessing, svm, tree

    x, y = datasets.load_iris(return_X_y=True)
    x = x.astype(np.float32)
    mlp = neural_network.MLPClassifier((8,), max_iter=30)
    models = {
        "logistic": linear_model.LogisticRegression(max_iter=300),
        "ridge": linear_model.RidgeClassifier(),
        "sgd": linear_model.SGDClassifier(),
        "MLP": mlp,
        "scaled MLP": pipeline.make_pipeline(preprocessing.StandardScaler(), mlp),
        "scaled MLP in [0, 1]": pipeline.make_pipeline(preprocessing.MinMaxScaler(), mlp),
        "linear SVM": svm.LinearSVC(),
        "SVM": svm.SVC(),
        "tree": tree.DecisionTreeClassifier(),
    }
    for name, model in models.items():
        for two in (False, True):
            rows = y < 2 if two else y < 3
            found = to_onnx(model.fit(x[rows], y[rows]), x[:1])
            yield f"{name}, {2 if two else 3} classes", found.SerializeToString()


def report(family: str, files: Iterator[tuple[str, bytes]]) -> None:
    """Print how many files of a family are taken, and why the others are not."""
    refused, count = [], 0
    for name, data in files:
        count += 1
        try:
            read_onnx_bytes(data, asked=Asked(classifier=False))
        except ModelError as error:
            refused.append(f"  {name}: {error.code}: {error}")
    print(f"{family}: {count - len(refused)} of {count} taken")
    for line in refused:
        print(line[:200])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folders", nargs="*", type=Path)
    folders = parser.parse_args().folders
    warnings.simplefilter("ignore")
    report("torch", torch_exports())
    report("torch, newer exporter", dynamo_exports())
    report("scikit-learn", scikit_learn_exports())
    report("as Keras' models by tf2onnx", keras_like())
    report("as the competitions' files", competition_like())
    for folder in folders:
        paths = sorted(folder.rglob("*.onnx"))
        report(folder.name, ((path.name, path.read_bytes()) for path in paths))


if __name__ == "__main__":
    main()
