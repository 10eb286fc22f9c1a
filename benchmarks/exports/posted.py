"""Every family of exports posted to a running service, each file as a job of its own.

``python -m benchmarks.exports.posted FOLDER [--url URL] [--key KEY] [--make] [--limit N]``:
FOLDER/FAMILY/*.onnx are posted one by one, with two random samples and ONNX Runtime's answers on
the file's plain form as their labels; a network of one output that is no classifier, with a
property that it keeps. What came of each is written to FOLDER/posted.jsonl at once: the next run
goes on from there. Prints a table: family, files, accepted (the job succeeded, and every answer was
that of the label), why not.
``--make`` first writes the families of ``taken`` that are not there yet.
"""

from __future__ import annotations

import argparse
import json
import re
import tempfile
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from benchmarks.exports.graphs import competition_like, keras_like
from benchmarks.exports.taken import dynamo_exports, scikit_learn_exports, torch_exports
from models.errors import ModelError
from models.onnx.forms.plain import Asked
from models.onnx.importer import read_onnx_bytes
from models.onnx.runtime import OnnxRuntimeModel
from service.client import Client, JobFailed, ServiceError

FAMILIES: dict[str, Callable[[], Iterator[tuple[str, bytes]]]] = {
    "torch": torch_exports,
    "torch, newer exporter": dynamo_exports,
    "scikit-learn": scikit_learn_exports,
    "as Keras' models by tf2onnx": keras_like,
    "as the competitions' files": competition_like,
}
#: Cheap: boxes, and a short attack on what they prove.
SPEC = {
    "norm": "linf",
    "epsilons": ["1/10000"],
    "method": "ibp",
    "clip": False,
    "radius": False,
    "attack": {"steps": 3, "restarts": 1, "audit": 1.0, "seed": 0},
}
#: Seconds that one job may take.
JOB_S = 180.0


def make(folder: Path) -> None:
    """Write the families that are not there yet."""
    for family, files in FAMILIES.items():
        if (folder / family).is_dir():
            continue
        written = list(files())
        if written:
            (folder / family).mkdir(parents=True)
        for number, (name, data) in enumerate(written):
            plain = re.sub(r"[^\w ,.-]", "", name)
            (folder / family / f"{number:03} {plain}.onnx").write_bytes(data)


def posted(client: Client, path: Path, scratch: Path) -> dict[str, Any]:
    """What came of one file: status accepted or refused, with the code and the sentence."""
    data = path.read_bytes()
    try:
        imported = read_onnx_bytes(data, asked=Asked(classifier=False))
        shape: tuple[int, ...] = imported.network.input_shape
        one = imported.network.classes == 1 and not _is_classifier(data)
    except ModelError:
        imported, one, shape = None, False, _declared_shape(data)
    x = np.random.default_rng(0).standard_normal((2, *shape)).astype(np.float32)
    try:
        if one:
            file = scratch / "property.vnnlib"
            file.write_text(_kept(int(np.prod(shape))))
            job = client.verify(path, file).wait(timeout_s=JOB_S)
            verdict = job.report["property"]["verdict"]
            good = verdict == "holds"
            said = f"property {verdict}"
        else:
            file = scratch / "data.npz"
            labels = np.zeros(2, np.int64)
            if imported is not None:
                whole = read_onnx_bytes(data)
                deployed = OnnxRuntimeModel(whole.deployed, shape, plain=True)
                labels = deployed(x).argmax(1)
            np.savez(file, x=x, y=labels)
            report = client.certify(path, file, SPEC).wait(timeout_s=JOB_S).report
            good = report["clean_accuracy"] == 1.0
            said = f"clean accuracy {report['clean_accuracy']}"
    except (ServiceError, JobFailed) as error:
        return {"status": "refused", "code": error.code, "why": str(error)[:200]}
    return {"status": "accepted" if good else "wrong", "code": "", "why": said}


def _is_classifier(data: bytes) -> bool:
    try:
        read_onnx_bytes(data)
    except ModelError:
        return False
    return True


def _declared_shape(data: bytes) -> tuple[int, ...]:
    """Of the first input, without the batch."""
    (first, *_) = onnx.load_model_from_string(data).graph.input
    dims = first.type.tensor_type.shape.dim
    return tuple(max(1, dim.dim_value) for dim in dims[1:]) or (1,)


def _kept(inputs: int) -> str:
    """A property that any ordinary network keeps: its output is below 10^9 near 0."""
    lines = [f"(declare-const X_{i} Real)" for i in range(inputs)]
    lines += ["(declare-const Y_0 Real)"]
    lines += [f"(assert (>= X_{i} 0.0))\n(assert (<= X_{i} 0.0001))" for i in range(inputs)]
    return "\n".join([*lines, "(assert (>= Y_0 1000000000.0))"])


def table(rows: list[dict[str, Any]]) -> str:
    """One line for each family."""
    families: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        families[row["family"]].append(row)
    lines = ["| family | files | accepted | why not |", "|---|---|---|---|"]
    for family, found in families.items():
        accepted = sum(row["status"] == "accepted" for row in found)
        codes = Counter(row["code"] for row in found if row["status"] == "refused")
        why = ", ".join(f"{code} {count}" for code, count in codes.most_common())
        wrong = [row["file"] for row in found if row["status"] == "wrong"]
        why += f" WRONG: {', '.join(wrong)}" * bool(wrong)
        lines.append(f"| {family} | {len(found)} | {accepted} | {why} |")
    return "\n".join(lines)


def main() -> None:
    """Post what has not been posted, then print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--key")
    parser.add_argument("--make", action="store_true", help="write the families of taken.py first")
    parser.add_argument("--limit", type=int, default=10**9, help="files to post in this run")
    options = parser.parse_args()
    folder: Path = options.folder
    if options.make:
        make(folder)
    state = folder / "posted.jsonl"
    lines = state.read_text().splitlines() if state.exists() else []
    rows = [json.loads(line) for line in lines]
    done = {(row["family"], row["file"]) for row in rows}
    wanted = [(path.parent.name, path) for path in sorted(folder.glob("*/*.onnx"))]
    left = [(family, path) for family, path in wanted if (family, path.name) not in done]
    with Client(options.url, key=options.key) as client, tempfile.TemporaryDirectory() as scratch:
        for family, path in left[: options.limit]:
            row = {"family": family, "file": path.name, **posted(client, path, Path(scratch))}
            rows.append(row)
            with state.open("a") as log:
                log.write(json.dumps(row) + "\n")
    print(table(rows))
    for row in rows:
        if row["status"] != "accepted":
            print(f"  {row['family']}, {row['file']}: {row['why']}")


if __name__ == "__main__":
    main()
