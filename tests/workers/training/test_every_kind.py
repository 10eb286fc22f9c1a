"""A network with each kind of layer is trained, written as plain ONNX, and gets from the file what
it gets as it is."""

from __future__ import annotations

import pytest
import torch

from models.architectures.layer_makers import KINDS
from tests.models.layers.every_kind import CLASSES, IMAGE, layer_of, layers_with
from tests.workers.training.runs import (
    CPU,
    attacked_in_vain,
    config_of,
    radii_of_network_and_file,
    rounding_is_covered,
)
from workers.training.config import TrainingError
from workers.training.data import TrainingData, pixels
from workers.training.loop import train
from workers.training.trainer import build_network
from workers.verification.bounds.lipschitz import lipschitz_constant
from workers.verification.cascade.bound_table import BOUNDS
from workers.verification.cascade.coverage import uncovered
from workers.verification.graph.compiled_network import CompiledNetwork


def samples(count: int = 40) -> TrainingData:
    """Class k: two of the eight channels are bright."""
    y = torch.arange(count) % CLASSES
    x = torch.randint(0, 100, (count, *IMAGE), generator=torch.Generator().manual_seed(0))
    for row, label in enumerate(y.tolist()):
        x[row, 2 * label : 2 * label + 2] += 150
    return TrainingData(x.to(torch.uint8), y)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_trained_of_a_kind_gets_the_same_radii_from_its_file(kind: str) -> None:
    config = config_of(
        "emma",
        architecture={"input": list(IMAGE), "layers": layers_with(kind)},
        epochs=6,
        batch_size=10,
        learning_rate=1e-2,
        augmentation="none",
    )
    first = CompiledNetwork.compile(build_network(config).deployed(), norms=False)
    if uncovered(BOUNDS["lipschitz"], first) is not None:
        # A product of two activations has no Lipschitz constant, and is not trained.
        with pytest.raises(TrainingError, match="cannot be trained"):
            train(config, samples(), device=CPU)
        return
    network, history = train(config, samples(), device=CPU)
    assert history[-1]["loss"] < history[0]["loss"]
    compiled = CompiledNetwork.compile(network.deployed())
    x = pixels(samples(8).x).numpy()
    radii = radii_of_network_and_file(network, x)
    attacked_in_vain(network, x, radii)
    rounding_is_covered(network, x)
    if layer_of(kind)[0].one_lipschitz:
        assert lipschitz_constant(compiled) <= 1.0 + 2e-4
