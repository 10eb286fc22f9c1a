"""Properties of the competition of 2021 on the networks at hand, and what its tools decided.

    CERTSERVE_TEST_DATA=... python -m benchmarks.published.competition
        [--url URL] [--share 0.5] [--only mnist-net] [--winner holds violated] [--keep FOLDER]

``vnncomp2021.json`` names them: a test image of CIFAR-10 or MNIST, the box of radius epsilon around
it (linf, in pixels, cut to [0, 1]; on CIFAR-10 normalised afterwards, in float32), and what the
competition's tools answered. The property is written as its generators wrote it: unsafe where
another class is at least as large. Each is posted to a running service (``POST /certify`` with
``property``) with ``--share`` of its timeout as ``time_budget_s``; printed are the verdicts side by
side, seconds, and at the end how many of each pair of verdicts there were.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections import Counter
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.published.networks import CIFAR, all_images
from service.client import Client

WAIT_S = 3600.0
FACTS = Path(__file__).with_name("vnncomp2021.json")


def box(image: NDArray[np.float32], epsilon: float, normalised: bool) -> NDArray[np.float32]:
    """(lower, upper) [2, inputs] of the network's own inputs."""
    ends = np.stack([image - np.float32(epsilon), image + np.float32(epsilon)]).clip(0, 1)
    if normalised:
        mean, std = (np.array(v, np.float32).reshape(1, 3, 1, 1) for v in CIFAR)
        ends = (ends - mean) / std
    return np.asarray(ends.reshape(2, -1), dtype=np.float32)


def vnnlib(ends: NDArray[np.float32], label: int, classes: int = 10) -> str:
    """Unsafe: another class is at least as large as the label's."""
    lines = [f"(declare-const X_{i} Real)" for i in range(ends.shape[1])]
    lines += [f"(declare-const Y_{i} Real)" for i in range(classes)]
    for i, (low, high) in enumerate(ends.T.astype(np.float64).tolist()):
        lines += [f"(assert (<= X_{i} {high!r}))", f"(assert (>= X_{i} {low!r}))"]
    others = " ".join(f"(and (>= Y_{i} Y_{label}))" for i in range(classes) if i != label)
    return "\n".join([*lines, f"(assert (or {others}))"])


def main() -> None:
    """Print a row per instance, then the counts."""
    parser = argparse.ArgumentParser(description=__doc__)
    default = os.environ.get("CERTSERVE_TEST_DATA")
    parser.add_argument("--shared", type=Path, default=default, required=default is None)
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--key")
    parser.add_argument("--share", type=float, default=0.5)
    parser.add_argument("--only", default="", help="a part of the network's name")
    words = ("holds", "violated", "none")
    parser.add_argument("--winner", nargs="+", choices=words, default=words)
    parser.add_argument("--keep", type=Path, help="where properties are written, too")
    options = parser.parse_args()
    instances = json.loads(FACTS.read_text())["instances"]
    counts: Counter[tuple[str, str]] = Counter()
    print("| instance | winner | tools: hold, violated | here | by | seconds | limit |")
    print("|---|---|---|---|---|---|---|")
    with (
        Client(options.url, key=options.key) as client,
        tempfile.TemporaryDirectory() as scratch,
    ):
        for item in instances:
            if options.only in item["network"] and item["winner"] in options.winner:
                row = _posted(client, item, options, options.keep or Path(scratch))
                counts[row["winner"], row["here"]] += 1
    for (winner, here), number in sorted(counts.items()):
        print(f"winner {winner}, here {here}: {number}")


@cache
def _images(name: str, folder: Path) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    x, y = all_images(name, folder)
    return x.numpy(), y.numpy()


def _posted(client: Client, item: dict[str, Any], options: Any, folder: Path) -> dict[str, Any]:
    name, data = item["network"], "cifar10" if "cifar" in item["network"] else "mnist"
    x, y = _images(data, options.shared / "data")
    at, epsilon = int(item["image"]), float(item["epsilon"])
    text = vnnlib(box(x[at : at + 1], epsilon, data == "cifar10"), int(y[at]))
    path = folder / f"{item['name']}.vnnlib"
    path.write_text(text)
    limit = options.share * item["timeout"]
    began = time.perf_counter()
    model = options.shared / "models" / "vnncomp2021" / f"{name}.onnx"
    job = client.verify(model, path, {"time_budget_s": limit}).wait(timeout_s=WAIT_S)
    seconds, found = time.perf_counter() - began, job.report["property"]
    tools = item.get("tools", {})
    print(
        f"| {path.stem} | {item['winner']} | {tools.get('holds')}, {tools.get('violated')} | "
        f"**{found['verdict']}** | {found['method']} | {seconds:.1f} | {limit:.0f} |",
        flush=True,
    )
    return {"winner": item["winner"], "here": found["verdict"]}


if __name__ == "__main__":
    main()
