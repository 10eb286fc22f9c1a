"""Published networks on real images, from the upload to the report, over HTTP."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from service.client import Client
from tests.e2e.live_service import JOB_S, LiveService
from tests.extent import examples

pytestmark = pytest.mark.slow

SAMPLES = examples(10, 32)

#: Network, epsilon (l2), normalisation, data, least clean accuracy.
MNIST = {"mean": [0.1307], "std": [0.3081]}
CIFAR = {"mean": [0.485, 0.456, 0.406], "std": [0.225, 0.225, 0.225]}
NETWORKS: list[tuple[str, dict[str, Any], str, float]] = [
    ("vnncomp2021/mnist-net_256x2.onnx", {}, "mnist", 0.9),
    ("colt/mnist_0.1.onnx", {"normalization": MNIST}, "mnist", 0.9),
    ("vnncomp2021/cifar_base_kw.onnx", {"normalization": CIFAR}, "cifar10", 0.5),
    ("cap/mnist_linf_0_1.pth", {"architecture": "mnist-small"}, "mnist", 0.9),
]


@pytest.fixture(scope="module")
def images(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Path]]:
    """MNIST as published, and the first CIFAR-10 test images as an npz (NHWC, uint8)."""
    mnist = shared / "data" / "mnist"
    cifar = tmp_path_factory.mktemp("cifar") / "cifar10.npz"
    with np.load(shared / "data" / "cifar10" / "test.npz") as pack:
        mosaic = np.asarray(Image.open(io.BytesIO(pack["mosaic_0"].tobytes())).convert("RGB"))
        tiles = mosaic.reshape(25, 32, 40, 32, 3).transpose(0, 2, 1, 3, 4).reshape(1000, 32, 32, 3)
        np.savez(cifar, x=tiles[:100], y=pack["labels"][:100].astype(np.int64))
    return {
        "mnist": {
            "dataset": mnist / "t10k-images-idx3-ubyte.gz",
            "dataset_labels": mnist / "t10k-labels-idx1-ubyte.gz",
        },
        "cifar10": {"dataset": cifar},
    }


@pytest.mark.parametrize(("name", "options", "data", "clean"), NETWORKS, ids=lambda v: str(v)[:30])
def test_published_network(
    calm_service: LiveService,
    shared: Path,
    images: dict[str, dict[str, Path]],
    name: str,
    options: dict[str, Any],
    data: str,
    clean: float,
) -> None:
    spec = {"norm": "l2", "epsilons": ["36/255"], "samples": SAMPLES, **options}
    with Client(calm_service.url) as client:
        job = client.certify(shared / "models" / name, spec=spec, **images[data])  # type: ignore[arg-type]
        client.wait(job["id"], timeout_s=JOB_S)
        report = json.loads(client.report(job["id"]))
    (row,) = report["results"]
    assert report["clean_accuracy"] >= clean
    assert row["certified_accuracy"] <= row["attack_accuracy"] <= report["clean_accuracy"]
    assert row["certified"] + row["falsified"] + row["undecided"] <= SAMPLES
    assert report["parity"]["largest_share"] <= 1
