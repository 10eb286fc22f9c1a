"""How much slower training and bounds are beside ONE other busy process, on two cores.

    python -m benchmarks.training.busy_neighbour [--threads 2] [--as-set]

The neighbour is a process that counts for ever; it is stopped and let go in turn, so that both
figures of a row come from the same minute, and the medians of the rounds count. Processors beyond
the first two are not used. Threads wait as a worker lets them
(``workers.jobs.hardware.compute_threads``); ``--as-set`` takes the environment as it is, for the
figures before. The bar is 2.5 times; the machine must have nothing else to do.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from workers.jobs.hardware.barrier_waits import watch_barriers
from workers.jobs.hardware.compute_threads import prepare_threads

ROOT = Path(__file__).resolve().parents[2]
#: Bounds of the example network that are timed, and the samples of one pass.
BOUNDS = {"bcp": 100, "crown": 20}
BATCH = 128
#: The paper's recipe of BCP, whose bounds cost what they cost there, on a small network.
TRAINED = {"architecture": "mnist-small", "epsilon": 0.3, "rounds": 10}

Work = Callable[[], object]


def training() -> Work:
    """One step of BCP on MNIST's shape, in the middle of its schedules."""
    import torch

    from workers.training.config import TrainingConfig
    from workers.training.trainer import Trainer, build_network

    config = TrainingConfig(method="bcp", activation="relu", batch_size=BATCH, seed=2020, **TRAINED)  # type: ignore[arg-type]
    trainer = Trainer(config, build_network(config))
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(BATCH, 1, 28, 28, generator=generator)
    y = torch.randint(0, 10, (BATCH,), generator=generator)
    return lambda: trainer.train_on(x, y, 0.9, 0)


def bound_of(name: str, samples: int) -> Work:
    """One pass of a bound over samples of the example."""
    import torch

    from models.onnx.importer import import_onnx
    from workers.verification.cascade.bound_table import BOUNDS as TABLE
    from workers.verification.graph.compiled_network import CompiledNetwork
    from workers.verification.problem import Problem
    from workers.verification.protocol import Budget
    from workers.verification.region import Region

    network = import_onnx(ROOT / "examples" / "mnist_certified.onnx")
    with np.load(ROOT / "examples" / "mnist_test.npz", allow_pickle=False) as stored:
        pixels, labels = stored["x"][:samples], stored["y"][:samples]
    x = torch.from_numpy(pixels.astype(np.float32) / np.float32(255)).reshape(-1, 1, 28, 28)
    y = torch.from_numpy(labels)
    with torch.no_grad():
        logits = network(x)
        others = logits.scatter(1, y[:, None], -torch.inf).amax(1)
        margin = (logits.gather(1, y[:, None])[:, 0] - others).double()
        compiled = CompiledNetwork.compile(network)
    problem = Problem(compiled, True, torch.device("cpu"), torch.float32)
    reach = torch.full((len(x),), 0.3, dtype=torch.float64)
    region = Region(x, reach, "l2", True)
    return lambda: TABLE[name].attempt(problem, region, y, Budget(margin))


@contextlib.contextmanager
def neighbour() -> Iterator[Callable[[bool], None]]:
    """A process that is busy while it is told so."""
    process = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    process.send_signal(signal.SIGSTOP)
    try:
        yield lambda busy: process.send_signal(signal.SIGCONT if busy else signal.SIGSTOP)
    finally:
        process.kill()
        process.wait()


def measure(title: str, work: Work, rounds: int, seconds: float) -> float:
    """Print a row; how many times slower beside the neighbour."""
    for _ in range(3):
        work()
    wall: dict[bool, list[float]] = {False: [], True: []}
    processor: dict[bool, list[float]] = {False: [], True: []}
    with neighbour() as set_busy:
        for number in range(2 * rounds):
            busy = number % 2 == 1
            set_busy(busy)
            time.sleep(0.05)
            began, spent, runs = time.perf_counter(), time.process_time(), 0
            while runs < 2 or time.perf_counter() - began < seconds:
                work()
                runs += 1
            wall[busy].append((time.perf_counter() - began) / runs)
            processor[busy].append((time.process_time() - spent) / runs)
    alone, beside = statistics.median(wall[False]), statistics.median(wall[True])
    of = {busy: 1e3 * statistics.median(times) for busy, times in processor.items()}
    print(
        f"{title:30} alone {1e3 * alone:8.1f} ms  beside {1e3 * beside:8.1f} ms  "
        f"{beside / alone:5.2f} times  (processor time {of[False]:.1f} and {of[True]:.1f} ms)",
        flush=True,
    )
    return beside / alone


def main() -> int:
    """Print a row per work; 1 where one is over the bar."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--as-set", action="store_true", help="leave the environment as it is")
    parser.add_argument("--rounds", type=int, default=5, help="alone and beside, in turn")
    parser.add_argument("--seconds", type=float, default=3.0, help="of one round's half")
    options = parser.parse_args()
    if not options.as_set:
        prepare_threads(options.threads)
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:2])
    import torch

    torch.set_num_threads(options.threads)
    watched = not options.as_set and watch_barriers(options.threads)
    waiting = os.environ.get("GOMP_SPINCOUNT") or os.environ.get("OMP_WAIT_POLICY", "as built")
    waiting = "watched" if watched else waiting
    print(f"{options.threads} thread(s), two processors, waiting: {waiting}", flush=True)
    works = {"training, BCP, mnist-small": training}
    for name, samples in BOUNDS.items():
        title = f"bound {name}, example, {samples}"
        works[title] = lambda name=name, samples=samples: bound_of(name, samples)  # type: ignore[misc]
    ratios = [
        measure(title, make(), options.rounds, options.seconds) for title, make in works.items()
    ]
    return int(max(ratios) > 2.5)


if __name__ == "__main__":
    sys.exit(main())
