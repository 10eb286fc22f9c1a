"""``certserve-check FILE``: exit status 0: every claim is proved; 1: one is not; 2: unreadable."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from check.bounds import ball_radius, growth, interval_margin, possible
from check.file import Array, Rejected, Unreadable, digest_of, members, need, read, sealed, whole
from check.network import Network

FORMAT = "certserve/certificate/1"
#: Multiplications that are made at most: some minutes. A service's certificates take seconds.
MOST = 2e12
#: The arithmetic of the deployed network; there is no other yet.
ROUNDING = "binary32, to nearest, sums in any order"
MEMBERS = ("format", "digest", "about", "rounding", "threat", "input_shape", "ends_in", "layers")
#: Tensors with a row per sample, and their types.
ROWS = {"index": "<i8", "label": "<i8", "prediction": "<i8", "radius": "<f8", "margin": "<f8"}
Labels = NDArray[np.int64]
TRUST = """On trust: that these layers, in this order, are the model's file (--model: its tensors);
samples and labels; IEEE float32 (no TF32, no Winograd, no denormal numbers read as zero); numpy
with its matrix products, cosines and sines."""


@dataclass(frozen=True)
class Certificate:
    """The threat: |x' - x| <= epsilon in ``norm``; with ``clip`` x' is in [0, 1] or no farther out
    than x. rows: index, label, prediction (-1: no answer), radius and margin (by interval bounds,
    per epsilon) of each sample; 0: nothing is claimed. tensors: of the file, by name."""

    document: dict[str, Any]
    tensors: dict[str, NDArray[Any]]
    network: Network
    norm: str
    epsilons: tuple[Fraction, ...]
    clip: bool
    x: NDArray[np.float32]
    rows: dict[str, NDArray[Any]]


def parse(file: BinaryIO) -> Certificate:
    """The certificate in a file. Raises Unreadable, Rejected."""
    document, tensors, digests = read(file)
    need(document.get("format") == FORMAT, f"its format is not {FORMAT}")
    members(document, *MEMBERS, "tensors", "samples", "certified")
    try:
        proper = sealed(document)["digest"]
    except (ValueError, RecursionError) as error:
        raise Unreadable("a part of it is no JSON") from error
    need(document["digest"] == proper, "its digest is not that of its content", Rejected)
    need(document["tensors"] == digests, "a tensor has another digest than it says", Rejected)
    need(document["rounding"] == ROUNDING, "it is about another arithmetic", Rejected)
    need(isinstance(document["about"], dict), "its remarks are no object")
    norm, texts, clip = members(document["threat"], "norm", "epsilons", "clip").values()
    need(norm in ("l2", "linf") and isinstance(clip, bool), "the threat has no norm, or no clip")
    need(isinstance(texts, list) and 0 < len(texts) <= 100, "there is no list of epsilons")
    for text in texts:
        plain = isinstance(text, str) and re.fullmatch("[0-9]{1,60}(/[1-9][0-9]{0,59})?", text)
        need(plain and str(Fraction(text)) == text != "0", "an epsilon is no fraction above 0")
    epsilons = tuple(Fraction(text) for text in texts)
    every = dict(tensors)
    rows = {name: tensors.pop(f"rows.{name}", np.zeros(0)) for name in ("input", *ROWS)}
    shape, layers, ends_in = (document[name] for name in ("input_shape", "layers", "ends_in"))
    network = Network(shape, layers, ends_in, tensors)
    need(not tensors, "there are tensors that no layer has")
    x = _checked(rows, whole(document["samples"], 2**26, 1), len(texts), network)
    return Certificate(document, every, network, norm, epsilons, clip, x, rows)


def _checked(rows: dict[str, NDArray[Any]], count: int, epsilons: int, network: Network) -> Any:
    """The samples in float32, once every row is of its type and shape, and possible."""
    x = rows.pop("input")
    for name, kind in ROWS.items():
        shape = (count, epsilons) if name == "margin" else (count,)
        fits = rows[name].shape == shape and rows[name].dtype == np.dtype(kind)
        need(fits, f"the rows have no proper {name}")
    fits = x.dtype in (np.uint8, np.float32) and x.shape == (count, *network.in_shape)
    need(fits, "the inputs have another type, shape or number")
    for name, least in (("label", 0), ("prediction", -1)):
        known = least <= rows[name].min() <= rows[name].max() < network.classes
        need(known, f"a {name} is no class", Rejected)
    single = len(np.unique(rows["index"])) == count and rows["index"].min() >= 0
    need(single, "a sample stands there twice, or before the first", Rejected)
    need(min(rows["radius"].min(), rows["margin"].min()) >= 0, "a claim is below 0", Rejected)
    # A byte k stands for the float32 number nearest to k / 255.
    return x.astype(np.float32) / np.float32(255) if x.dtype == np.uint8 else x


def certified(radius: Array, margin: Array, epsilons: tuple[Fraction, ...]) -> NDArray[np.bool_]:
    """[n, epsilons]: certified by the radius, or by interval bounds."""
    by_radius = [[Fraction(value) >= epsilon for epsilon in epsilons] for value in radius.tolist()]
    return np.array(by_radius, dtype=bool).reshape(margin.shape) | (margin > 0)


def verify(found: Certificate) -> None:
    """Prove everything that the certificate claims. Raises Rejected; Unreadable: for too long."""
    network, x, rows = found.network, found.x, found.rows
    labels, margin = rows["label"], rows["margin"]
    work = network.work(len(x), int(np.count_nonzero(margin)))
    need(work <= MOST, f"it takes {work:.0e} multiplications, more than {MOST:.0e}")
    with np.errstate(all="ignore"):
        network.check_norms()
        for some in blocks(np.arange(len(x)), network):
            grown = growth(network, x[some])
            about = (network, grown, labels[some], found.norm)
            most, least = (ball_radius(*about, spare) for spare in (0, 2))
            _agree(rows["radius"][some], least, most, rows["index"][some], "radius")
            answers = possible(network, grown, rows["prediction"][some])
            need(answers.all(), f"not the prediction of {rows['index'][some][~answers]}", Rejected)
        for place, epsilon in enumerate(found.epsilons):
            for some in blocks(np.flatnonzero(margin[:, place]), network):
                box = (network, x[some], labels[some], epsilon, found.clip)
                most, least = (interval_margin(*box, spare) for spare in (0, 2))
                _agree(margin[some, place], least, most, rows["index"][some], "margin")
    counts = certified(rows["radius"], margin, found.epsilons).sum(0).tolist()
    need(found.document["certified"] == counts, f"{counts} samples are certified", Rejected)


def _agree(claimed: Array, least: Array, most: Array, index: Labels, what: str) -> None:
    for row in np.flatnonzero(~((least <= claimed) & (claimed <= most)))[:1]:
        raise Rejected(f"sample {index[row]}: {what} {claimed[row]}, but {most[row]} is proved")


def blocks(rows: Labels, network: Network) -> Iterator[Labels]:
    """The rows in parts that are handled at once."""
    return (rows[i : i + network.block] for i in range(0, len(rows), network.block))


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point of ``certserve-check``."""
    parser = argparse.ArgumentParser(prog="certserve-check", description=__doc__)
    parser.add_argument("certificate", type=Path, help="the file of GET /jobs/{id}/certificate")
    parser.add_argument("--model", type=Path, help="the ONNX file it must be about; needs onnx")
    options = parser.parse_args(arguments)
    try:
        with options.certificate.open("rb") as file:
            found = parse(file)
        verify(found)
        if options.model is not None:
            print(_compare(found, options.model))
    except (Unreadable, OSError, MemoryError, ImportError) as error:
        print(f"cannot be judged: {error}")
        return 2
    except Rejected as error:
        print(f"REJECTED: {error}")
        return 1
    print(f"verified: {len(found.x)} samples, {found.norm}, clip {found.clip}")
    for epsilon, count in zip(found.epsilons, found.document["certified"], strict=True):
        print(f"  epsilon {epsilon}: {count} certified")
    print(f"  {found.document['digest']}\n{TRUST}")
    return 0


def _compare(found: Certificate, path: Path) -> str:
    """Every tensor of a layer is one of the file's, as it lies there, transposed or with its sign
    turned, or one number of it repeated; but for what a job may put around a file."""
    import onnx
    from onnx import numpy_helper

    try:
        graph = onnx.load(str(path), load_external_data=False).graph
        held = [*graph.initializer]
        held += [a.t for node in graph.node for a in node.attribute if a.type == a.TENSOR]
        arrays = [numpy_helper.to_array(tensor) for tensor in held]
    except Exception as error:
        raise Unreadable(f"the model cannot be read: {str(error)[:200]!a}") from error
    tensors = {n: array for n, array in found.tensors.items() if not n.startswith("rows.")}
    sizes = {array.size for array in tensors.values()}
    known = [_forms(array, sizes) for array in arrays if array.dtype == np.float32]
    digests = {name: found.document["tensors"][name] for name in tensors}
    missing = {name for name, of in digests.items() if not any(of in forms for forms in known)}
    around, said = _around(found, missing), ""
    missing -= around
    where = "not in the model's file (what it computes is not looked for)"
    need(not missing, f"{where}: {sorted(missing)[:9]!a}", Rejected)
    if around:
        numbers = {name: tensors[name].reshape(-1)[:9].tolist() for name in sorted(around)}
        said += f"\n  around the file, and not in it: {numbers!a}"
    unused = sum(forms.isdisjoint(digests.values()) for forms in known)
    said += f"\n  {unused} of its tensors of floats are in no layer" if unused else ""
    return f"the model's file has all {len(tensors) - len(around)} tensors of the layers{said}"


def _forms(array: NDArray[Any], sizes: set[int]) -> set[str]:
    """Digests of the forms that a layer may have a constant of a file in."""
    forms = [array, np.swapaxes(array, 0, -1)][: max(1, array.ndim)]
    if array.size == 1:
        forms += [np.full(size, array.reshape(-1)[0]) for size in sizes]
    return {digest_of(np.ascontiguousarray(s * form).tobytes()) for form in forms for s in (1, -1)}


def _around(found: Certificate, missing: set[str]) -> set[str]:
    """Those that a job puts around a file: its normalisation in front, and behind one score z the
    weight of (0, z)."""
    first, last = (found.document["layers"][place] for place in (0, -1))
    around = {first["mean"], first["std"]} if first["kind"] == "normalize" else set[str]()
    if last["kind"] == "linear" and last["bias"] is None:
        weight = found.tensors[last["weight"]]
        around |= {last["weight"]} if weight.tolist() == [[0.0], [1.0]] else set()
    return around & missing


if __name__ == "__main__":
    sys.exit(main())
