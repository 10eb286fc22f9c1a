"""A layer whose deployed form is a chain is trained, kept, exported and certified like the rest."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from models.checkpoints.state_dict import load_checkpoint, weights_of
from models.network import Network
from models.onnx.deployed import DeployedNetwork
from models.onnx.exporter.export import export_onnx
from models.onnx.importer import import_onnx_bytes
from tests.models.layers.series import ARCHITECTURE, Series, convolutional, known_series, register
from workers.training.config import TrainingConfig
from workers.training.data import TrainingData
from workers.training.loop import train
from workers.verification.cascade.bound_table import BOUNDS
from workers.verification.cascade.run import certify_samples
from workers.verification.results import CertificationRequest

__all__ = ["known_series"]

pytestmark = pytest.mark.usefixtures("known_series")
CPU = torch.device("cpu")


def images(count: int = 40) -> TrainingData:
    """Class k: row 2 k + 4 is bright."""
    y = torch.arange(count) % 10
    x = torch.randint(0, 60, (count, 1, 28, 28), generator=torch.Generator().manual_seed(0))
    for row, label in enumerate(y.tolist()):
        x[row, 0, 2 * label + 4] = 255
    return TrainingData(x.to(torch.uint8), y)


@pytest.fixture(scope="module")
def trained() -> Network:
    """As ``train`` returns it: the series is one layer of it."""
    with pytest.MonkeyPatch.context() as patch:
        register(patch)
        config = TrainingConfig(
            method="emma",
            architecture=ARCHITECTURE,
            epsilon=0.3,
            epochs=3,
            batch_size=10,
            activation="relu",
        )
        network, _ = train(config, images(), device=CPU)
    return network


def radii(network: Network, data: bytes, x: NDArray[np.float32], **options: Any) -> Any:
    """Certified radii of the predictions, the ONNX file being what is deployed."""
    deployed = DeployedNetwork(data, network.input_shape, None)
    logits = deployed(x)
    request = CertificationRequest(epsilons=(Fraction(1, 50),), attack=None, **options)
    found = certify_samples(
        network,
        x,
        logits.argmax(1),
        np.arange(len(x)),
        request,
        deployed=deployed,
        deployed_logits=logits,
        device=CPU,
    )
    return found.radius


def test_what_is_trained_ends_as_one_network_in_three_forms(
    trained: Network, tmp_path: Path
) -> None:
    assert {Series} <= {type(trained.layer(node.name)) for node in trained.nodes}
    deployed = trained.deployed()
    (tmp_path / "w.safetensors").write_bytes(weights_of(deployed))
    loaded = load_checkpoint(tmp_path / "w.safetensors", "safetensors", ARCHITECTURE)
    assert loaded.graph_digest() == deployed.graph_digest()
    data = export_onnx(deployed)
    imported = import_onnx_bytes(data)
    x = torch.rand(6, 1, 28, 28, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = trained(x)
        for network in (deployed, loaded, imported):
            assert torch.allclose(network(x), expected, rtol=0, atol=1e-5)
        found = DeployedNetwork(data, deployed.input_shape, None)(x.numpy())
    np.testing.assert_allclose(found, expected.numpy(), rtol=0, atol=1e-5)


#: Every bound but the optimised ones, whose radii take long.
METHODS = [bound for bound in BOUNDS.values() if "crown" not in (*bound.dominates, *bound.replaces)]


@pytest.mark.parametrize(("method", "norm"), [(m.name, m.norms[0]) for m in METHODS])
def test_all_forms_get_the_same_radii(trained: Network, method: str, norm: str) -> None:
    deployed = trained.deployed()
    data = export_onnx(deployed)
    x = images(1).x.numpy().astype(np.float32) / 255
    ours = radii(deployed, data, x, norm=norm, method=method)
    again = radii(import_onnx_bytes(data), data, x, norm=norm, method=method)
    assert (ours > 0).all()
    np.testing.assert_allclose(again, ours, rtol=0, atol=1e-5)


def test_skew_convolutions_are_certified_in_both_forms() -> None:
    deployed = convolutional(degree=4).deployed()
    data = export_onnx(deployed)
    x = torch.rand(2, 2, 8, 8, generator=torch.Generator().manual_seed(2)).numpy()
    ours = radii(deployed, data, x, norm="l2", method="lipschitz")
    again = radii(import_onnx_bytes(data), data, x, norm="l2", method="lipschitz")
    assert (ours > 0).all()
    np.testing.assert_allclose(again, ours, rtol=0, atol=1e-5)
