"""Published networks as they circulate: the import is what ONNX Runtime runs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from models.checkpoints.state_dict import load_checkpoint
from models.onnx.exporter.export import export_onnx
from models.onnx.importer import import_onnx, import_onnx_bytes
from models.onnx.runtime import OnnxRuntimeModel

ONNX_FILES = [
    ("colt/mnist_0.1.onnx", (1, 28, 28), 348_374),
    ("vnncomp2021/cifar_base_kw.onnx", (3, 32, 32), None),
    ("vnncomp2021/cifar_wide_kw.onnx", (3, 32, 32), None),
    ("vnncomp2021/mnist-net_256x2.onnx", (784, 1), None),
]


@pytest.mark.parametrize(("name", "shape", "parameters"), ONNX_FILES)
def test_onnx_files(
    shared: Path, name: str, shape: tuple[int, ...], parameters: int | None
) -> None:
    path = shared / "models" / name
    network = import_onnx(path)
    assert network.input_shape == shape
    assert network.classes == 10
    assert parameters in (None, network.parameter_count)
    x = np.random.default_rng(0).random((8, *shape), np.float32)
    expected = OnnxRuntimeModel(path, shape)(x)
    with torch.no_grad():
        given = network(torch.from_numpy(x)).numpy()
        again = import_onnx_bytes(export_onnx(network))(torch.from_numpy(x)).numpy()
    assert np.abs(given - expected).max() < 2e-5 * (1 + np.abs(expected).max())
    assert np.array_equal(again, given)


def test_every_onnx_file_is_in_the_list(shared: Path) -> None:
    found = {str(p.relative_to(shared / "models")) for p in (shared / "models").rglob("*.onnx")}
    for name in found - {row[0] for row in ONNX_FILES}:
        import_onnx(shared / "models" / name)


def test_cap_checkpoint(shared: Path) -> None:
    path = shared / "models/cap/mnist_linf_0_1.pth"
    network = load_checkpoint(path, "pt", "mnist-small")
    assert network.parameter_count == 166_406
    reference = torch.nn.Sequential(
        torch.nn.Conv2d(1, 16, 4, 2, 1),
        torch.nn.ReLU(),
        torch.nn.Conv2d(16, 32, 4, 2, 1),
        torch.nn.ReLU(),
        torch.nn.Flatten(),
        torch.nn.Linear(1568, 100),
        torch.nn.ReLU(),
        torch.nn.Linear(100, 10),
    )
    reference.load_state_dict(torch.load(path, weights_only=True, map_location="cpu"))
    x = torch.rand(8, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    assert torch.equal(network(x), reference(x))


def test_colt_checkpoint_is_its_onnx_file(shared: Path) -> None:
    folder = shared / "models/colt"
    network = load_checkpoint(folder / "mnist_0.1_convmed_flat_2_2_100.pt", "pt", "mnist-convmed")
    x = torch.rand(8, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    assert torch.equal(network(x), import_onnx(folder / "mnist_0.1.onnx")(x))
