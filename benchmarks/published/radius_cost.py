"""What the search of radii costs beside the verdicts of the same job, by CPU time.

    OMP_NUM_THREADS=1 CERTSERVE_TEST_DATA=... python -m benchmarks.published.radius_cost
        [--only 2b cifar_base] [--images 20] [--method auto]

The networks and threats of ``benchmarks.published.beside_lirpa``; the whole cascade and the attack,
once without ``radius`` and once with it, after three samples that load what is loaded once; work as
of a job of 500 samples. Operator norms are made before, as an inspection makes them. Ratio: what
the radius adds, over what the verdicts take alone.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from fractions import Fraction
from pathlib import Path

import numpy as np
import torch

from benchmarks.published.beside_lirpa import Case, cases
from benchmarks.published.networks import load_images
from models.network import Network
from models.onnx.exporter.export import export_onnx
from models.onnx.runtime import OnnxRuntimeModel
from workers.verification.cascade.run import certify_samples
from workers.verification.results import CertificationRequest, SampleResults

#: Forward passes per sample.
WORK = 2e7 / 500


def seconds(
    network: Network,
    x: torch.Tensor,
    y: torch.Tensor,
    request: CertificationRequest,
    norms: Path,
) -> tuple[float, SampleResults]:
    """CPU seconds of a certification, and its results; norms: where the operator norms are kept."""
    deployed = OnnxRuntimeModel(export_onnx(network), network.input_shape)
    began = time.process_time()
    found = certify_samples(
        network,
        x.numpy(),
        y.numpy().astype(np.int64),
        np.arange(len(x)),
        request,
        deployed=deployed,
        deployed_logits=deployed(x.numpy()),
        device=torch.device("cpu"),
        work=WORK,
        cache_dir=norms,
    )
    return time.process_time() - began, found


def measure(case: Case, data: Path, images: int, method: str) -> None:
    """Print one row."""
    network = case.make()
    x, y = load_images(case.data, data, -(-images // 10))
    x, y = x[:images].reshape(-1, *network.input_shape), y[:images]
    if case.untrained:
        with torch.no_grad():
            y = network(x).argmax(1)
    told = []
    with tempfile.TemporaryDirectory() as folder:
        for radius in (None, False, True):
            request = CertificationRequest(
                case.norm,
                (Fraction(case.epsilon).limit_denominator(10_000),),
                method=method,
                clip=case.clip,
                radius=radius is not False,
            )
            some = slice(None) if radius is not None else slice(0, 3)
            told.append(seconds(network, x[some], y[some], request, Path(folder)))
    _, (alone, plain), (both, found) = told
    certified = [int(result.certified.sum()) for result in (plain, found)]
    radii = found.radius[np.isfinite(found.radius)]
    print(
        f"| {case.title} | {method} | {len(x)} | {certified[0]} / {certified[1]} | {alone:.2f} | "
        f"{both:.2f} | {both / alone - 1.0:.2f} | {radii.mean():.4g} |",
        flush=True,
    )


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    default = os.environ.get("CERTSERVE_TEST_DATA")
    parser.add_argument("--shared", type=Path, default=default, required=default is None)
    parser.add_argument("--only", nargs="+", default=[""], help="parts of titles, such as 2b")
    parser.add_argument("--images", type=int, default=20)
    parser.add_argument("--method", default="auto")
    options = parser.parse_args()
    torch.set_num_threads(1)
    columns = ("network, threat", "method", "images", "certified")
    columns += ("verdicts s", "with radius s", "ratio", "mean radius")
    print(f"| {' | '.join(columns)} |")
    print("|---" * 8 + "|")
    for case in cases(options.shared / "models"):
        if any(part in case.title for part in options.only):
            measure(case, options.shared / "data", options.images, options.method)


if __name__ == "__main__":
    main()
