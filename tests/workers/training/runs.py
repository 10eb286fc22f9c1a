"""Small training runs: images that are easy to learn, a config per method, and the radii of what
comes out, which its file must get too."""

from __future__ import annotations

import itertools
from dataclasses import replace
from fractions import Fraction

import numpy as np
import torch
from numpy.typing import NDArray

from models.architectures.lipconvnet import HEADS, LAYERS, POOLS
from models.architectures.published import ACTIVATIONS
from models.network import Network
from models.onnx.deployed import DeployedNetwork
from models.onnx.exporter.export import export_onnx
from models.onnx.importer import import_onnx_bytes
from models.onnx.runtime import OnnxRuntimeModel
from service.contract.catalogue.training_methods import TRAINING_METHODS
from tests.extent import ALL
from workers.training.config import TrainingConfig
from workers.training.data import TrainingData
from workers.training.schedules import Schedule
from workers.verification.attacks.pgd import attack
from workers.verification.cascade.run import certify_samples
from workers.verification.forward.margins import logit_enclosure
from workers.verification.forward.propagation import propagate
from workers.verification.graph.compiled_network import CompiledNetwork
from workers.verification.region import Region
from workers.verification.results import AttackSettings, CertificationRequest
from workers.verification.rounding import Rounding

CPU = torch.device("cpu")
ACTIVATION = {
    "emma": "maxmin",
    "local-lip-b": "relu-theta",
    "local-lip-g": "clamped-maxmin",
    "soc": "maxmin",
    "soc-crc": "householder",
}
#: 2 channels in two blocks of one convolution.
LIPCONVNET = {
    "name": "lipconvnet",
    "input": [1, 28, 28],
    "blocks": 2,
    "depth": 2,
    "width": 2,
    "mean": [0.2],
}
#: Almost orthogonal layers, convex potentials, reflectors and an l2 pool.
LEADING: dict[str, object] = {
    "input": [1, 28, 28],
    "layers": [
        {"kind": "aol-conv2d", "out": 8, "kernel": 4, "stride": 4},
        {"kind": "maxmin"},
        {"kind": "cpl-conv2d"},
        {"kind": "bro-conv2d", "kernel": 3},
        {"kind": "maxmin"},
        {"kind": "sll-conv2d", "inner": 6},
        {"kind": "l2-pool2d", "kernel": [1, 2]},
        {"kind": "flatten"},
        {"kind": "bro-linear"},
        {"kind": "maxmin"},
        {"kind": "cpl-linear", "inner": 10},
        {"kind": "sll-linear", "inner": 10},
        {"kind": "aol-linear", "out": 32},
        {"kind": "maxmin"},
        {"kind": "normalized-linear", "out": 10},
    ],
}
SHIFTNET: dict[str, object] = {
    "name": "shiftnet",
    "input": [1, 28, 28],
    "width": 16,
    "depths": [1, 2],
    "mean": [0.2],
}
#: What a LipConvnet may be made of.
_TABLES = {"layer": LAYERS, "head": HEADS, "pooling": POOLS, "activation": ACTIVATIONS}
#: Every word of each table, beside others each time; at night all combinations.
LIPCONVNET_CHOICES: list[dict[str, str]] = [
    dict(zip(_TABLES, words, strict=True))
    for words in (
        itertools.product(*_TABLES.values())
        if ALL
        else (
            [list(table)[(row + row // len(table)) % len(table)] for table in _TABLES.values()]
            for row in range(max(map(len, _TABLES.values())))
        )
    )
]
ARCHITECTURE: dict[str, dict[str, object]] = {
    "soc": LIPCONVNET,
    "soc-crc": {**LIPCONVNET, "head": "crc", "hidden": 32},
}
_BOX = {"l1": 1e-4, "regularization": 0.5}
_ATTACK = {**_BOX, "attack_steps": 2, "attack_restarts": 2}
_SMALL_BOX = {**_ATTACK, "subselection_ratio": 0.5, "relu_shrinkage": 0.8}
_BETWEEN = {**_ATTACK, "alpha": 0.3, "attack_scale": 1.5}
#: In which no part of a loss is switched off.
OPTIONS: dict[str, dict[str, object]] = {
    "ibp": {**_BOX},
    "crown-ibp": {**_BOX, "beta": 0.5},
    "sabr": {**_SMALL_BOX},
    "taps": {**_ATTACK, "attacked_activations": 1, "gradient_weight": 2.0},
    "staps": {**_SMALL_BOX, "attacked_activations": 1, "gradient_weight": 2.0},
    "mtl-ibp": {**_BETWEEN},
    "cc-ibp": {**_BETWEEN},
    "exp-ibp": {**_BETWEEN},
    "colt": {"attack_steps": 2, "projections": 4, "mix": 0.5},
    "cap": {"projections": 4},
    "soc": {"gamma": 0.1, "shift": "emma", "loss": "logit-annealing"},
    "soc-crc": {"gamma": 0.1, "curvature": 0.01},
}


def images(count: int = 60, *, classes: int = 10) -> TrainingData:
    """Bright squares at ten places: easy to learn."""
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(count) % classes
    x = (torch.rand(count, 1, 28, 28, generator=generator) * 60).to(torch.uint8)
    for row, label in enumerate(y.tolist()):
        top, left = 3 + 5 * (label % 5), 5 + 12 * (label // 5)
        x[row, 0, top : top + 4, left : left + 8] = 255
    return TrainingData(x, y)


def config_of(method: str = "emma", **changes: object) -> TrainingConfig:
    """Two epochs of ``method`` on ``images``."""
    row = TRAINING_METHODS[method]
    config = TrainingConfig(
        method=method,
        bears_bfloat16=row.bfloat16,
        bfloat16_on_cpu=row.bfloat16_on_cpu,
        compiles=row.compiled,
        architecture=ARCHITECTURE.get(method, "mnist-small"),
        options=OPTIONS.get(method, {}),
        epsilon=0.3,
        epochs=2,
        batch_size=16,
        activation=ACTIVATION.get(method, "relu"),
        epsilon_schedule=Schedule(((0.0, 0.1), (1.0, 1.0))),
        kappa_schedule=Schedule(((0.0, 1.0), (0.5, 0.0))),
        augmentation="shift",
        validation_samples=10,
    )
    return replace(config, **changes)  # type: ignore[arg-type]


def radii_of_network_and_file(
    network: Network, x: NDArray[np.float32], method: str = "lipschitz"
) -> NDArray[np.float64]:
    """Certified l2 radii of the predictions for x; some are positive, and the exported file, read
    again as if it were uploaded, gets the same ones up to 1e-5."""
    deployed = network.deployed()
    data = export_onnx(deployed)
    runtime = DeployedNetwork(data, deployed.input_shape, None)
    logits = runtime(x)
    request = CertificationRequest("l2", (Fraction(1, 100),), method, attack=None)
    ours, again = (
        certify_samples(
            form,
            x,
            logits.argmax(1),
            np.arange(len(x)),
            request,
            deployed=runtime,
            deployed_logits=logits,
            device=CPU,
        ).radius
        for form in (deployed, import_onnx_bytes(data))
    )
    assert (ours > 0).any()
    np.testing.assert_allclose(again, ours, rtol=0, atol=1e-5)
    return ours


def attacked_in_vain(
    network: Network, x: NDArray[np.float32], radii: NDArray[np.float64], *, steps: int = 12
) -> None:
    """Steps along the gradient, from x and from a random start, answered by ONNX Runtime: none of
    the predictions for x changes within 0.999 of its certified radius; far beyond some do."""
    deployed = network.deployed()
    runtime = OnnxRuntimeModel(export_onnx(deployed), deployed.input_shape)
    rows = np.flatnonzero(radii > 0)
    inside = torch.from_numpy(x[rows])
    # An infinite radius: no input in the pixels' range changes the answer.
    within = torch.from_numpy(radii[rows]).clamp_max(x[0].size ** 0.5)
    labels = torch.from_numpy(runtime(x[rows]).argmax(1))

    def breaks_any(size: torch.Tensor, *, clip: bool) -> bool:
        broken, _ = attack(
            *(deployed, runtime, inside, labels, rows, size),
            norm="l2",
            clip=clip,
            settings=AttackSettings(steps=steps, restarts=2, seed=0),
        )
        return bool(broken.any())

    assert not breaks_any(0.999 * within, clip=True)
    # Where every radius is infinite there may be nothing beyond.
    assert np.isinf(radii[rows]).all() or breaks_any(20.0 * within + 5.0, clip=False)


def rounding_is_covered(network: Network, x: NDArray[np.float32], times: float = 10.0) -> None:
    """What a logit may be off by in float32 is at least so many times what it is off by in ONNX
    Runtime, against float64."""
    deployed = network.deployed()
    points = torch.from_numpy(x)
    compiled, rounding = CompiledNetwork.compile(deployed), Rounding.sound(torch.float64)
    region = Region(points, torch.zeros(len(x), dtype=torch.float64), "l2", False)
    state = propagate(compiled, region, rounding=rounding, dtype=torch.float64)
    _, room = logit_enclosure(compiled.head, state, rounding)
    found = OnnxRuntimeModel(export_onnx(deployed), deployed.input_shape)(x)
    double = Network.from_description(deployed.description(), deployed.state_dict()).double()
    with torch.no_grad():
        off = (torch.from_numpy(found).double() - double(points.double())).abs()
    assert bool((times * off <= room).all())
