"""What ``branch-and-bound`` decides beside an incomplete bound, through the cascade, by CPU time.

    CERTSERVE_TEST_DATA=... python -m benchmarks.published.complete [--setting N ...]
        [--images N | --indices I ...] [--methods alpha-crown branch-and-bound] [--seconds S]

Networks, threats and images of ``published`` (the settings by number, and ``mlp``: SDP-CROWN's
MNIST network, whole l2 ball of radius 1), or the test images at these positions; the attack first;
counterexamples replayed in ONNX Runtime. ``--seconds``: ``sample_time_s``, in CPU seconds of one
thread, in place of work.
"""

from __future__ import annotations

import argparse
import os
import time
from collections import Counter
from fractions import Fraction
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.published.networks import SETTINGS, load_images, load_network
from models.network import Network
from models.onnx.exporter.export import export_onnx
from models.onnx.importer import import_onnx
from models.onnx.runtime import OnnxRuntimeModel
from workers.verification.cascade.run import certify_samples
from workers.verification.results import CertificationRequest

#: mnist-net_256x2 at linf 0.03.
DEFAULT = str(len(SETTINGS) - 1)


def loaded(
    shared: Path, name: str, count: int, indices: list[int]
) -> tuple[str, Network, NDArray[np.float32], NDArray[np.int64], CertificationRequest]:
    """(title, network, inputs, labels, request without a method)."""
    if name == "mlp":
        folder = shared / "models" / "sdp-crown"
        network = import_onnx(folder / "mnist_mlp.onnx")
        stored = np.load(folder / "mnist_200.npz", allow_pickle=False)
        x, y = stored["x"][:count].astype(np.float32) / np.float32(255), stored["y"][:count]
        request = CertificationRequest("l2", (Fraction(1),), clip=False, radius=False)
        title = "sdp-crown/mnist_mlp.onnx l2 1 (whole ball)"
    else:
        setting = SETTINGS[int(name)]
        network = load_network(setting, shared / "models")
        per_class = 10_000 if indices else -(-count // 10)
        images, labels = load_images(setting.data, shared / "data", per_class)
        x, y = images.numpy(), labels.numpy()
        # One of each class in turn.
        chosen = indices or np.argsort(
            [int((y[:place] == c).sum()) for place, c in enumerate(y)], kind="stable"
        )
        chosen = chosen[: len(indices) or count]
        x, y = x[chosen], y[chosen]
        request = CertificationRequest(setting.norm, (Fraction(setting.epsilon),), radius=False)
        title = f"{setting.path} {setting.norm} {setting.epsilon}"
    x = np.ascontiguousarray(x.reshape(-1, *network.input_shape), dtype=np.float32)
    return title, network, x, y.astype(np.int64), request


def measure(
    shared: Path, name: str, count: int, indices: list[int], method: str, seconds: float | None
) -> str:
    """One line: what a method decides, and its slowest samples."""
    title, network, x, y, request = loaded(shared, name, count, indices)
    deployed = OnnxRuntimeModel(export_onnx(network), network.input_shape)
    tally: Counter[str] = Counter()
    spent = []
    for row in range(len(x)):
        began = time.process_time()
        part = slice(row, row + 1)
        found = certify_samples(
            network,
            x[part],
            y[part],
            np.arange(row, row + 1),
            CertificationRequest(
                request.norm,
                request.epsilons,
                method,
                clip=request.clip,
                radius=False,
                sample_time_s=seconds,
            ),
            deployed=deployed,
            deployed_logits=deployed(x[part]),
            device=torch.device("cpu"),
            now=time.process_time,
        )
        spent.append(time.process_time() - began)
        decided = found.decided_by[0][0]
        state = (
            "certified" if found.certified[0, 0] else "falsified" if found.falsified[0, 0] else ""
        )
        tally[f"{state} by {decided}" if state else decided] += 1
        tally["certified"] += int(found.certified[0, 0])
    slow = " ".join(f"{value:.1f}" for value in sorted(spent)[-3:])
    parts = ", ".join(f"{key} {number}" for key, number in sorted(tally.items()))
    return f"{title}, {method}: {parts} of {len(x)}; CPU seconds {sum(spent):.0f} (most {slow})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shared", type=Path, default=os.environ.get("CERTSERVE_TEST_DATA"))
    parser.add_argument("--setting", nargs="*", default=[DEFAULT])
    parser.add_argument("--images", type=int, default=30)
    parser.add_argument("--indices", nargs="*", type=int, default=[])
    parser.add_argument("--methods", nargs="*", default=["alpha-crown", "branch-and-bound"])
    parser.add_argument("--seconds", type=float, default=None)
    options = parser.parse_args()
    torch.set_num_threads(1)
    for name in options.setting:
        for method in options.methods:
            line = measure(
                Path(options.shared),
                name,
                options.images,
                options.indices,
                method,
                options.seconds,
            )
            print(line, flush=True)


if __name__ == "__main__":
    main()
