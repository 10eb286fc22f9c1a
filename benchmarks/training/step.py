"""Cost of one training step per method, as a ratio to the same network's plain step.

    python -m benchmarks.training.step --architecture cifar-6c2f --batch 128

Both are timed in turn, in the same run; the median of the rounds counts. Peak memory is the
process's own growth while a method's steps run, in a child process per method. ``--precision`` and
``--compiled`` change the method's step alone: the plain one stays float32 and eager. The row says
what was used, which is less than was asked for where a compiler fails.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from typing import Any

import torch

from service.contract.catalogue.training_methods import TRAINING_METHODS
from workers.jobs.hardware.allocator import keep_freed_memory
from workers.jobs.hardware.device import device_of
from workers.training.config import TrainingConfig
from workers.training.step import COMPARED
from workers.training.trainer import Trainer, build_network

#: Method and activation of each row.
ROWS = (
    ("standard", "relu"),
    ("gloro", "maxmin"),
    ("emma", "maxmin"),
    ("lmt", "relu"),
    ("bcp", "relu"),
    ("local-lip-b", "relu"),
    ("local-lip-b", "relu-theta"),
    ("local-lip-b", "clamped-maxmin"),
    ("local-lip-g", "relu-theta"),
    ("ibp", "relu"),
    ("crown-ibp", "relu"),
    ("sabr", "relu"),
    ("taps", "relu"),
    ("staps", "relu"),
    ("mtl-ibp", "relu"),
    ("cc-ibp", "relu"),
    ("exp-ibp", "relu"),
    ("colt", "relu"),
    ("cap", "relu"),
)

#: Steps before the clock: a compiled one is compared with the eager one in its first.
WARM_UP = COMPARED + 1


def trainer_of(
    method: str,
    activation: str,
    options: argparse.Namespace,
    *,
    precision: str = "float32",
    compiled: str = "false",
) -> Trainer:
    """A run in the middle of its schedules: robust loss alone."""
    config = TrainingConfig(
        method=method,
        architecture=options.architecture,
        epsilon=36 / 255,
        batch_size=options.batch,
        activation=activation,
        seed=2019,
        precision=precision,
        bears_bfloat16=TRAINING_METHODS[method].bfloat16,
        bfloat16_on_cpu=TRAINING_METHODS[method].bfloat16_on_cpu,
        compiles=TRAINING_METHODS[method].compiled,
        compiled={"auto": "auto", "true": True, "false": False}[compiled],
    )
    device = device_of("auto")
    return Trainer(config, build_network(config).to(device))


def measure(method: str, activation: str, options: argparse.Namespace) -> dict[str, Any]:
    """Seconds of a step and of the plain step of the same network, medians; peak GB."""
    generator = torch.Generator().manual_seed(0)
    plain, ours = trainer_of("standard", activation, options), None
    shape = plain.network.input_shape
    x = torch.rand(options.batch, *shape, generator=generator).to(plain.device)
    y = torch.randint(0, plain.network.classes, (options.batch,), generator=generator)
    y = y.to(plain.device)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    precision = options.precision if TRAINING_METHODS[method].bfloat16 else "float32"
    ours = trainer_of(method, activation, options, precision=precision, compiled=options.compiled)
    for _ in range(WARM_UP):
        ours.train_on(x, y, 0.9, 0)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    ratios, steps, plains = [], [], []
    plain.train_on(x, y, 0.9, 0)
    for _ in range(options.rounds):
        times = []
        for trainer in (plain, ours, plain):
            if x.is_cuda:
                torch.cuda.synchronize()
            began = time.perf_counter()
            trainer.train_on(x, y, 0.9, 0)
            if x.is_cuda:
                torch.cuda.synchronize()
            times.append(time.perf_counter() - began)
        first, step, second = times
        ratios.append(2 * step / (first + second))
        steps.append(step)
        plains.append((first + second) / 2)
    return {
        "step_s": statistics.median(steps),
        "plain_s": statistics.median(plains),
        "ratio": statistics.median(ratios),
        "peak_gb": peak * 1024 / 1e9,
        "growth_gb": (peak - before) * 1024 / 1e9,
        "precision": str(ours.dtype).removeprefix("torch."),
        "compiled": ours.step.compiled,
    }


def main() -> None:
    """Print a row per method."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--architecture", default="cifar-6c2f")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--precision", choices=("auto", "float32", "bfloat16"), default="float32")
    parser.add_argument("--compiled", choices=("auto", "true", "false"), default="false")
    parser.add_argument("--method", help="one method only, in this process")
    parser.add_argument("--activation", default="relu")
    options = parser.parse_args()
    # As a training does.
    keep_freed_memory()
    torch.set_num_threads(options.threads)
    if options.method:
        print(json.dumps(measure(options.method, options.activation, options)))
        return
    print(f"{options.architecture}, batch {options.batch}, {options.threads} thread(s)")
    for method, activation in ROWS:
        command = [sys.executable, "-m", "benchmarks.training.step", "--method", method]
        command += ["--activation", activation, "--architecture", options.architecture]
        command += ["--batch", str(options.batch), "--rounds", str(options.rounds)]
        command += ["--threads", str(options.threads), "--precision", options.precision]
        command += ["--compiled", options.compiled]
        answer = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        row = json.loads(answer.splitlines()[-1])
        print(
            f"{method:12} {activation:15} ratio {row['ratio']:5.2f}  step {row['step_s']:.3f} s  "
            f"plain {row['plain_s']:.3f} s  peak {row['peak_gb']:.2f} GB  "
            f"{row['precision']}, {row['compiled'] or 'eager'}"
        )


if __name__ == "__main__":
    main()
