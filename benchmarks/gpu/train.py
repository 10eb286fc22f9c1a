"""One published run: train, then verify every test image; resumable, a few minutes per call.

    python -m benchmarks.gpu.train out/plans/2-cifar-bcp.json --data FOLDER --minutes 8

FOLDER holds ``<data set>_train.npz`` and ``<data set>_test.npz`` (x uint8, y). Call it again until
it prints the row: a call trains until its minutes are over and leaves a checkpoint, then verifies
in blocks of which each is kept. Exit status 0: done; 3: call again. Verification is sound (method
auto); PGD-100 is the published attack: l2, steps of epsilon / 4, one run.

A plan for several devices (``--devices`` of ``benchmarks.gpu.plans``, or here for a trial) trains
by as many processes, as a worker does, each on a GPU of its own; verification takes the first.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import torch

from models.architectures.published import blueprint
from models.network import Network
from models.onnx.deployed import DeployedNetwork
from models.onnx.exporter.export import export_onnx
from service.contract.catalogue.training_methods import TRAINING_METHODS
from service.contract.version import engine_version
from workers.jobs.datasets.layout import as_network_input, to_pixels
from workers.jobs.hardware.device import device_name, device_of
from workers.jobs.parallel.launch import FOLDERS, Request, train_on_devices, trained_by
from workers.training.checkpoint import run_digest
from workers.training.config import TrainingConfig
from workers.training.data import TrainingData
from workers.training.loop import CHECKPOINT_S, History, Paused, train
from workers.verification.cascade.bound_table import BOUNDS
from workers.verification.cascade.run import certify_samples
from workers.verification.results import AttackSettings, CertificationRequest, SampleResults

#: Test images per kept block.
BLOCK = 500
AGAIN = 3
CHECKPOINT = "checkpoint.safetensors"
#: Seconds that a process waits for the others in a step; the first step of a GPU may compile.
RANK_TIMEOUT_S = 120.0


def load(folder: Path, dataset: str, split: str, shape: tuple[int, ...]) -> TrainingData:
    """The split of a data set in the network's layout, as bytes where it is bytes."""
    with np.load(folder / f"{dataset}_{split}.npz", allow_pickle=False) as arrays:
        x, y = as_network_input(arrays["x"], shape), arrays["y"]
    return TrainingData(torch.from_numpy(np.ascontiguousarray(x)), torch.from_numpy(y).long())


def trained(
    row: dict[str, Any], options: argparse.Namespace, device: torch.device, until: float
) -> tuple[Network, dict[str, Any]] | None:
    """The deployed network and facts of its training; None where minutes ran out."""
    folder = options.out / row["name"]
    folder.mkdir(parents=True, exist_ok=True)
    plan = row["plan"]
    values = plan["hyperparameters"]
    skeleton = blueprint(plan["architecture"], activation=values["activation"]).skeleton
    data = load(options.data, row["dataset"], "train", skeleton.input_shape)
    if options.samples:
        data = TrainingData(data.x[: options.samples], data.y[: options.samples])
        few = min(values["validation_samples"], options.samples // 10)
        values["validation_samples"] = few
    run = TrainingConfig.of_plan(plan, TRAINING_METHODS[plan["method"]])
    digest = run_digest(run, len(data.x))
    if (folder / "model" / "network.json").exists():
        facts = json.loads((folder / "trained.json").read_text())
        if facts.get("run") != digest:
            sys.exit(f"{folder} holds another run, such as a trial: give this one its own --out")
        return Network.load(folder / "model"), facts
    spent = folder / "seconds"
    began = time.monotonic()
    try:
        if run.devices > 1:
            network, history = shared(plan, run, data, folder, device, until)
        else:
            network, history = train(
                run,
                data,
                device=device,
                checkpoint=folder / CHECKPOINT,
                should_pause=lambda: time.monotonic() > until,
                on_epoch=told,
            )
    except Paused:
        return None
    finally:
        before = float(spent.read_text()) if spent.exists() else 0.0
        spent.write_text(str(before + time.monotonic() - began))
    deployed = network.deployed()
    facts = {
        "history": history,
        "seconds": float(spent.read_text()),
        "epochs": run.epochs,
        "run": digest,
    }
    (folder / "trained.json").write_text(json.dumps(facts))
    (folder / "model").mkdir(exist_ok=True)
    deployed.save(folder / "model")
    return deployed, facts


def told(rows: History) -> None:
    """Print the epoch that has ended."""
    print(json.dumps(rows[-1]), flush=True)


def shared(
    plan: dict[str, Any],
    run: TrainingConfig,
    data: TrainingData,
    folder: Path,
    device: torch.device,
    until: float,
) -> tuple[Network, History]:
    """The same by as many processes as the plan has devices. Raises Paused."""
    if device.type == "cuda" and torch.cuda.device_count() < run.devices:
        sys.exit(f"{run.devices} GPUs are asked for, and torch sees {torch.cuda.device_count()}")
    for left in folder.glob(f"{FOLDERS}*"):
        # Of a call that was killed.
        shutil.rmtree(left, ignore_errors=True)
    # Of a trial there are fewer.
    samples = folder / f"data-{len(data.x)}"
    samples.mkdir(exist_ok=True)
    facts = samples / "facts.json"
    if not facts.exists():
        # Once: the processes of every call map the same files.
        np.save(samples / "x.npy", data.x.numpy())
        np.save(samples / "y.npy", data.y.numpy())
        facts.write_text(json.dumps({"samples": len(data.x)}))
    request = Request(
        plan=plan,
        data=str(samples.absolute()),
        checkpoint=str((folder / CHECKPOINT).absolute()),
        checkpoint_s=CHECKPOINT_S,
        device=device.type,
        threads=max(1, (os.cpu_count() or 1) // run.devices),
        limit_s=RANK_TIMEOUT_S,
        log_format="text",
    )
    train_on_devices(
        request,
        devices=run.devices,
        folder=folder,
        progress=lambda done, total, text: None,
        on_epoch=told,
        on_checkpoint=lambda: None,
        should_pause=lambda: time.monotonic() > until,
    )
    return trained_by(folder / CHECKPOINT, run, len(data.x))


def verified(
    row: dict[str, Any],
    network: Network,
    options: argparse.Namespace,
    device: torch.device,
    until: float,
) -> list[SampleResults] | None:
    """Results of every test image, block by block; None where minutes ran out."""
    folder = options.out / row["name"]
    plan = row["plan"]
    test = load(options.data, row["dataset"], "test", network.input_shape)
    x = to_pixels(test.x.numpy(), clip=True)[: options.test_samples]
    y = test.y.numpy()[: options.test_samples]
    deployed = DeployedNetwork(export_onnx(network), network.input_shape, None)
    request = CertificationRequest(
        norm=plan["norm"],
        epsilons=(Fraction(plan["epsilon"]),),
        method=options.method,
        soundness="sound",
        deterministic=True,
        clip=True,
        radius=False,
        attack=AttackSettings(steps=100, restarts=1, audit=1.0),
        seed=0,
    )
    parts = []
    network = network.to(device)
    for start in range(0, len(x), BLOCK):
        rows = slice(start, min(start + BLOCK, len(x)))
        # A trial's blocks are shorter, and another method's are not this one's.
        path = folder / f"verified-{options.method}-{rows.start}-{rows.stop}.npz"
        if not path.exists():
            if time.monotonic() > until:
                return None
            certify_samples(
                network,
                x[rows],
                y[rows],
                np.arange(start, rows.stop),
                request,
                deployed=deployed,
                deployed_logits=deployed(x[rows]),
                device=device,
                cache_dir=folder,
            ).save(path)
        parts.append(SampleResults.load(path))
    return parts


def code() -> str:
    """The commit, where this is a checkout without changes, and a digest of the sources."""
    commands = (("git", "status", "--porcelain"), ("git", "rev-parse", "--short", "HEAD"))
    root = Path(__file__).resolve().parents[2]
    try:
        changes, commit = (
            subprocess.run(c, cwd=root, check=True, capture_output=True, text=True).stdout.strip()
            for c in commands
        )
    except (OSError, subprocess.CalledProcessError):
        return engine_version()
    return engine_version() if changes else f"{commit}, {engine_version()}"


def main() -> int:
    """Train, verify, print the row; 3: call again."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("plan", type=Path)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("out/gpu"))
    parser.add_argument("--minutes", type=float, default=8.0)
    parser.add_argument("--method", choices=("auto", *BOUNDS), default="auto")
    parser.add_argument("--samples", type=int, help="train on the first N only (a trial run)")
    parser.add_argument("--test-samples", type=int, help="verify the first N only (a trial run)")
    parser.add_argument("--epochs", type=int, help="instead of the plan's (a trial run)")
    parser.add_argument("--devices", type=int, help="instead of the plan's (a trial run)")
    parser.add_argument("--precision", choices=("float32", "bfloat16"), help="instead of auto")
    parser.add_argument("--compiled", choices=("true", "false"), help="instead of auto")
    options = parser.parse_args()
    until = time.monotonic() + 60 * options.minutes
    row = json.loads(options.plan.read_text())
    for name in ("epochs", "precision", "compiled"):
        value = getattr(options, name)
        if value is not None:
            row["plan"]["hyperparameters"][name] = value == "true" if name == "compiled" else value
    if options.devices is not None:
        row["plan"]["devices"] = options.devices
    device = device_of("auto")
    found = trained(row, options, device, until)
    if found is None:
        print("minutes are over: call again to go on training")
        return AGAIN
    network, facts = found
    parts = verified(row, network, options, device, until)
    if parts is None:
        print("minutes are over: call again to go on verifying")
        return AGAIN
    label = np.concatenate([part.label for part in parts])
    correct = np.concatenate([part.prediction for part in parts]) == label
    certified = np.concatenate([part.certified[:, 0] for part in parts])
    falsified = np.concatenate([part.falsified[:, 0] for part in parts])
    name = device_name(device)
    result = {
        "name": row["name"],
        "samples": len(label),
        "standard": 100 * float(correct.mean()),
        "pgd100": 100 * float((correct & ~falsified).mean()),
        "verified": 100 * float((correct & certified).mean()),
        "published": row["published"],
        "epochs": facts["epochs"],
        "training_s": round(facts["seconds"], 1),
        "precision": facts["history"][-1].get("precision"),
        "compiled": facts["history"][-1].get("compiled"),
        "device": name,
        "devices": row["plan"].get("devices", 1),
        "code": code(),
    }
    (options.out / row["name"] / "result.json").write_text(json.dumps(result))
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
