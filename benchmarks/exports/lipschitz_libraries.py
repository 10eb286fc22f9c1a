"""What networks of libraries of 1-Lipschitz layers get of the radius that norm 1 deserves.

    CERTSERVE_TEST_DATA=... PYTHONPATH=. python -m benchmarks.exports.lipschitz_libraries
        [--url URL] [--network NAME] [--exporter script] [--images 20]
        [--natural] [--method auto]

Each network of ``lipschitz_networks`` whose library is installed is trained for some steps on MNIST
or CIFAR-10, exported by torch's two exporters and posted to a running service (``POST /certify``),
as it is and with ``"summation": "partial-sums"``, with images and the network's own answers as
labels. ``accuracy``: of 1000 test images; networks called learned or trained never saw them.
``deserved``: the least margin over the norm of the difference of the two rows of the last layer,
which is the radius if every layer before it has norm 1 (all together ``factor``, where they divide
by more) and nothing rounds, as a share of the image's length: median and least. Of the 1000 images
those are taken that deserve 0.005 of their length, or a little more: what images have in trained
networks; where there are too few, the surest ones. ``uploaded``, ``partial``: the certified radius
over the deserved one, median and least.

``--natural``: the first images that the network classifies correctly, whatever they deserve, and
of the certified over the deserved radius: ``mean`` (the ratio of the means), ``median``, ``tenth``
(the 10 % quantile), ``least`` and how many images have ``enough``, 0.95. ``deserved``: the mean, in
pixels and as a share of the image's length.
"""

from __future__ import annotations

import argparse
import importlib.util
import io
import json
import os
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from torch import Tensor, nn

from benchmarks.exports.lipschitz_networks import NETWORKS, Built, versions
from benchmarks.published.networks import load_images, mnist, unpacked
from service.client import Client, JobFailed, ServiceError

EXPORTERS = ("script", "dynamo")
#: Method by norm, for radii that nothing but the layers' norms decides.
METHODS = {"l2": "lipschitz", "linf": "ibp"}
#: Training images of CIFAR-10 in a file.
PACK = 10_000
#: Of the image's length: about what images deserve in trained networks.
SHARE = 0.005
#: Of the deserved radius.
ENOUGH = 0.95
JOB_S = 1800.0


def training_images(data: str, folder: Path, count: int) -> tuple[Tensor, Tensor]:
    """The first training images, x in [0, 1] [n, channels, height, width], and labels."""
    if data == "mnist":
        x, y = mnist(folder, "train")
    else:
        packs = range(-(-min(count, 5 * PACK) // PACK))
        parts = [unpacked(folder / "cifar10" / f"train_{number}.npz") for number in packs]
        x, y = (np.concatenate(part) for part in zip(*parts, strict=True))
    pixels = torch.from_numpy(x[:count].astype(np.float32) / np.float32(255))
    return pixels, torch.from_numpy(y[:count].astype(np.int64))


def trained(x: Tensor, y: Tensor, built: Built) -> nn.Module:
    """The network after some steps, with plain weights."""
    module, generator = built.module, torch.Generator().manual_seed(0)
    optimizer = torch.optim.Adam(module.parameters(), built.rate)
    rates = torch.optim.lr_scheduler
    schedule = (
        rates.OneCycleLR(optimizer, built.rate, built.steps)
        if built.annealed
        else rates.ConstantLR(optimizer, factor=1.0)
    )
    module.train()
    for _ in range(built.steps):
        rows = torch.randint(0, len(x), (built.batch,), generator=generator)
        loss = built.loss(module(x[rows]), y[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    optimizer.zero_grad()
    with torch.no_grad():
        module.eval()(x[:2])
    return built.plain(module).eval().requires_grad_(False)


def exported(module: nn.Module, x: Tensor, exporter: str) -> bytes:
    """The file that torch writes, for any batch."""
    if exporter == "dynamo":
        shapes = ({0: torch.export.Dim.DYNAMIC},)
        program = torch.onnx.export(
            module, (x[:2],), dynamo=True, dynamic_shapes=shapes, verbose=False
        )
        assert program is not None
        return program.model_proto.SerializeToString()
    stream = io.BytesIO()
    torch.onnx.export(
        module,
        (x[:2],),
        stream,
        input_names=["x"],
        opset_version=17,
        dynamic_axes={"x": {0: "n"}},
        dynamo=False,
    )
    return stream.getvalue()


def folded(file: bytes, scratch: Path) -> bytes:
    """The file with the constants that it computes written into it, by ONNX Runtime."""
    options, path = onnxruntime.SessionOptions(), scratch / "folded.onnx"
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.optimized_model_filepath = str(path)
    onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    return path.read_bytes()


def deserved(module: nn.Module, x: Tensor, norm: str) -> tuple[Tensor, Tensor]:
    """Radii of the module's own answers, were all layers but the last of norm 1; the answers."""
    logits = module.double()(x.double())
    module.float()
    last = [layer for layer in module.modules() if isinstance(layer, nn.Linear)][-1]
    order = 2.0 if norm == "l2" else 1.0
    labels = logits.argmax(1)
    pairs = torch.cdist(last.weight.double(), last.weight.double(), p=order)[labels]
    margins = logits.gather(1, labels[:, None]) - logits
    return (margins / pairs).scatter(1, labels[:, None], torch.inf).amin(1), labels


def certified(
    client: Client,
    file: bytes,
    data: Path,
    norm: str,
    method: str,
    summation: str | None,
    scratch: Path,
) -> np.ndarray[Any, Any] | str:
    """Radii of the samples; where the job has none, why."""
    path = scratch / "network.onnx"
    path.write_bytes(file)
    spec: dict[str, Any] = {"norm": norm, "epsilons": ["1/100"], "method": method}
    spec |= {"radius": True, "clip": False, "input_range": None, "attack": None}
    spec |= {} if summation is None else {"summation": summation}
    try:
        job = client.certify(path, data, spec).wait(timeout_s=JOB_S)
    except (ServiceError, JobFailed) as error:
        return f"{error.code}: {error}"[:200]
    return np.array([row["radius"] or 0.0 for row in job.rows()])


def summary(radii: np.ndarray[Any, Any], worth: np.ndarray[Any, Any]) -> dict[str, float]:
    """Of the radii of natural images, over what they deserve."""
    kept = radii / worth
    tenth, median = np.quantile(kept, [0.1, 0.5])
    found = {"mean": radii.mean() / worth.mean(), "median": median, "tenth": tenth}
    found |= {"least": kept.min(), "enough": int((kept >= ENOUGH).sum())}
    return {key: round(float(value), 3) for key, value in found.items()}


def measure(
    client: Client,
    name: str,
    exporters: list[str],
    images: int,
    natural: bool,
    method: str | None,
    folder: Path,
) -> list[dict[str, Any]]:
    """A row per exporter."""
    torch.manual_seed(0)
    built = NETWORKS[name]()
    method = method or METHODS[built.norm]
    shape = (1, 28, 28) if built.data == "mnist" else (3, 32, 32)
    pixels, classes = load_images(built.data, folder, 100)
    x, y = torch.as_tensor(pixels).float().reshape(-1, *shape), torch.as_tensor(classes)
    seen = training_images(built.data, folder, built.seen) if built.seen else (x, y)
    began = time.process_time()
    module = trained(*seen, built)
    seconds, rows = time.process_time() - began, []
    worth, labels = deserved(module, x, built.norm)
    worth = worth / built.factor
    accuracy = float((labels == y).double().mean())
    order = 2 if built.norm == "l2" else torch.inf
    shares = worth / x.flatten(1).norm(dim=1, p=order)
    first = 0 if natural else min(int((shares < SHARE).sum()), len(x) - images)
    ranked = (labels == y).nonzero().flatten() if natural else shares.argsort()
    chosen = ranked[first : first + images]
    some, worth, labels, shares = x[chosen], worth[chosen], labels[chosen], shares[chosen]
    worths = (worth.mean(), shares.mean()) if natural else (shares.median(), shares.min())
    for exporter in exporters:
        row: dict[str, Any] = {"network": name, "exporter": exporter, "norm": built.norm}
        row |= {"deserved": [round(float(value), 4) for value in worths]}
        row |= {"trained_s": round(seconds, 1), "folded": built.folded, "images": len(chosen)}
        row |= {"steps": built.steps, "accuracy": round(accuracy, 3)}
        rows.append(row)
        with tempfile.TemporaryDirectory() as held:
            scratch, data = Path(held), Path(held) / "data.npz"
            np.savez(data, x=some.numpy(), y=labels.numpy())
            try:
                file = exported(module, some, exporter)
            except (torch.onnx.errors.OnnxExporterError, RuntimeError) as error:
                row["not_exported"] = f"{type(error).__name__}: {error}"[:120]
                continue
            file = folded(file, scratch) if built.folded else file
            for key, summation in (("uploaded", None), ("partial", "partial-sums")):
                found = certified(client, file, data, built.norm, method, summation, scratch)
                if isinstance(found, str):
                    row[key] = found
                    continue
                kept = found / worth.numpy()
                shown = [round(float(share), 3) for share in (np.median(kept), kept.min())]
                row[key] = summary(found, worth.numpy()) if natural else shown
    return rows


def main() -> None:
    """Print the versions, and a row per network and exporter."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--key")
    parser.add_argument(
        "--network",
        choices=NETWORKS,
        action="append",
        help="by default those called trained with --natural, and all others without it",
    )
    parser.add_argument("--exporter", choices=EXPORTERS, action="append", help="by default both")
    parser.add_argument("--images", type=int, default=20)
    parser.add_argument("--method", help="by default lipschitz, in linf ibp")
    parser.add_argument("--natural", action="store_true", help="the first ones, as they come")
    options = parser.parse_args()
    folder = Path(os.environ["CERTSERVE_TEST_DATA"]) / "data"
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    print(json.dumps(versions()), flush=True)
    installed = {name.split(",")[0] for name in NETWORKS}
    modules = {"deel-torchlip": "deel"}
    installed = {name for name in installed if importlib.util.find_spec(modules.get(name, name))}
    with Client(options.url, key=options.key) as client:
        usual = [name for name in NETWORKS if (", trained" in name) == options.natural]
        for name in options.network or usual:
            if name.split(",")[0] not in installed:
                print(json.dumps({"network": name, "not_run": "not installed"}), flush=True)
                continue
            exporters = options.exporter or [*EXPORTERS]
            images, natural = options.images, options.natural
            for row in measure(client, name, exporters, images, natural, options.method, folder):
                print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
