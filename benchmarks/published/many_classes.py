"""What thousands of classes cost every bound: seconds per sample and the process's peak memory.

    OMP_NUM_THREADS=1 python -m benchmarks.published.many_classes [--ends dense conv relu sum]
        [--outputs 1000 10000 40000] [--features 512] [--methods crown] [--norms linf]
        [--epsilon 1/50] [--samples 2] [--limit 120]

Random weights; the label is what the network says, which leads by so little of thousands of classes
that nearly all are open at that epsilon. Behind a dense layer of so many features; behind a
convolution of the 100 pixels, flattened, alone (conv), with a ReLU (relu), or summed with another
one (sum); ``softplus`` is the dense one with a smooth head, for ``crc``. One process for each row:
"peak" is its largest memory, what torch and the network take (the row "none") included. "over":
the time limit ended it.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import time
from fractions import Fraction
from multiprocessing.connection import Connection
from typing import Any

import torch
from torch import nn

from models.layers.activations import Softplus
from models.layers.kinds import Add, Conv2d, Linear, ReLU, Reshape
from models.network import INPUT, Network
from workers.verification.cascade.bound_table import BOUNDS
from workers.verification.clock import Clock
from workers.verification.graph.compiled_network import CompiledNetwork
from workers.verification.problem import Problem
from workers.verification.protocol import Budget
from workers.verification.region import Region, float_above

ENDS = ("dense", "conv", "relu", "sum", "softplus")
SIDE = 10
#: What a sample of a job of 500 may cost, in forward passes.
PASSES = 4e4

Row = tuple[str, Any, tuple[str, ...]]


def network_of(end: str, outputs: int, features: int) -> Network:
    """One channel of 10 x 10 pixels; ``outputs`` logits, a multiple of 100 behind convolutions."""
    torch.manual_seed(0)

    def dense(inner: int, outer: int) -> Linear:
        made = nn.Linear(inner, outer)
        return Linear(made.weight.detach(), made.bias.detach())

    def conv(inner: int, outer: int) -> Conv2d:
        made = nn.Conv2d(inner, outer, 3, padding=1)
        assert made.bias is not None
        return Conv2d(made.weight.detach(), made.bias.detach(), padding=1)

    if end in ("dense", "softplus"):
        between = ReLU() if end == "dense" else Softplus()
        rows: list[Row] = [("flat", Reshape(shape=(SIDE**2,)), (INPUT,))]
        rows += [("first", dense(SIDE**2, features), ("flat",)), ("between", between, ("first",))]
        rows += [("logits", dense(features, outputs), ("between",))]
        return Network((1, SIDE, SIDE), rows).eval()
    channels = outputs // SIDE**2
    rows = [("first", conv(1, 8), (INPUT,)), ("between", ReLU(), ("first",))]
    rows += [("second", conv(8, channels), ("between",))]
    if end == "relu":
        rows += [("last", ReLU(), ("second",))]
    if end == "sum":
        rows += [("other", conv(8, channels), ("between",)), ("last", Add(), ("second", "other"))]
    rows += [("out", Reshape(shape=(outputs,)), (rows[-1][0],))]
    return Network((1, SIDE, SIDE), rows).eval()


def one(options: dict[str, Any]) -> dict[str, Any]:
    """In a process of its own: the row's figures."""
    network = network_of(options["end"], options["outputs"], options["features"])
    generator = torch.Generator().manual_seed(1)
    x = torch.rand(options["samples"], *network.input_shape, generator=generator)
    with torch.no_grad():
        logits = network(x).double()
    label = logits.argmax(1)
    lead = -logits.topk(2, 1).values.diff(dim=1)[:, 0]
    compiled = CompiledNetwork.compile(network)
    proved, over, began = 0, False, time.process_time()
    if options["method"] != "none":
        bound = BOUNDS[options["method"]]
        clock = Clock(time.monotonic() + options["limit"])
        reach = torch.full((len(x),), float_above(Fraction(options["epsilon"])))
        region = Region(x, reach.double(), options["norm"], True)
        budget = Budget(lead, clock, passes=min(PASSES, bound.price(tightest=False)))
        problem = Problem(compiled, True, torch.device("cpu"))
        proved = int(bound.attempt(problem, region, label, budget).proved.sum())
        over = clock.over()
    spent = (time.process_time() - began) / len(x)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"proved": proved, "seconds": spent, "peak": peak, "over": over}


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ends", nargs="+", choices=ENDS, default=list(ENDS))
    parser.add_argument("--outputs", nargs="+", type=int, default=[1000, 10_000, 40_000])
    parser.add_argument("--features", type=int, default=512)
    parser.add_argument("--methods", nargs="+", default=["none", *BOUNDS])
    parser.add_argument("--norms", nargs="+", default=["linf"])
    parser.add_argument("--epsilon", default="1/50")
    parser.add_argument("--samples", type=int, default=2)
    parser.add_argument("--limit", type=float, default=120.0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    print("| last layer | outputs | norm | method | proved | s per sample | peak MB |")
    print("|---" * 7 + "|")
    shared = {name: getattr(options, name) for name in ("features", "epsilon", "samples", "limit")}
    for end in options.ends:
        for outputs in options.outputs:
            for norm in options.norms:
                for method in options.methods:
                    asked = {"end": end, "outputs": outputs, "norm": norm, "method": method}
                    print(_row({**shared, **asked}), flush=True)


def _row(asked: dict[str, Any]) -> str:
    head = f"| {asked['end']} | {asked['outputs']} | {asked['norm']} | {asked['method']} |"
    context = multiprocessing.get_context("fork")
    mine, its = context.Pipe(duplex=False)
    child = context.Process(target=_tell, args=(its, asked))
    child.start()
    its.close()
    try:
        found = mine.recv()
    except EOFError:
        found = {"failed": "ended without a word: out of memory?"}
    child.join()
    if "failed" in found:
        return f"{head} {found['failed'][:100]} | | |"
    over = " (over)" if found["over"] else ""
    figures = f"{found['proved']} | {found['seconds']:.2f}{over} | {found['peak']:.0f} |"
    return f"{head} {figures}"


def _tell(pipe: Connection, asked: dict[str, Any]) -> None:
    try:
        pipe.send(one(asked))
    except (MemoryError, RuntimeError) as error:
        pipe.send({"failed": f"{type(error).__name__}: {error}".splitlines()[0]})


if __name__ == "__main__":
    main()
