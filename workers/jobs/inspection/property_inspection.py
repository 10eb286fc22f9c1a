"""The inspection of a model and a VNN-LIB property, in the limited child."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from models.onnx.deployed import DeployedNetwork
from models.onnx.forms.signature import same_order
from service.contract.storage.pictures import THUMBNAILS
from workers.jobs.datasets.thumbnails import thumbnails
from workers.jobs.inspection.estimate import property_estimate
from workers.verification.cascade.parity import check_parity
from workers.verification.cascade.parity_inputs import BATCH_SIZES
from workers.verification.clock import Clock, OutOfTime
from workers.verification.graph.compiled_network import CompiledNetwork
from workers.verification.properties.attack import starting_points
from workers.verification.properties.errors import PropertyError
from workers.verification.properties.inputs import float32_box, outer_box
from workers.verification.properties.lowering import Property
from workers.verification.properties.splitting import splits
from workers.verification.properties.text.syntax import MAX_BYTES
from workers.verification.properties.text.vnnlib import parse_vnnlib
from workers.verification.properties.verify import attack_passes, property_bounds, questions
from workers.verification.protocol import Bound
from workers.verification.region import Region

if TYPE_CHECKING:
    from workers.jobs.inspection.loaded_model import LoadedModel

__all__ = ["inspect_property"]

#: Inputs of the property on which our graph is compared with ONNX Runtime.
POINTS = 64


def inspect_property(request: Mapping[str, Any], folder: Path, loaded: LoadedModel) -> None:
    """Write network.json, weights.safetensors, deployed.onnx, data.npz, facts.json, thumbnails.bin.

    ``request`` as of ``child.inspect``, with ``property``, the path of the VNN-LIB file. data.npz
    holds the property as JSON bytes, and there are no thumbnails.
    Raises PropertyError and what ``child.inspect`` raises.
    """
    started, budget = time.monotonic(), request.get("time_budget_s")
    stated = parse_vnnlib(_text(Path(request["property"])))
    network = loaded.network
    check_fit(stated, loaded)
    network.save(folder)
    (folder / "deployed.onnx").write_bytes(loaded.onnx)
    compiled = CompiledNetwork.compile(network, norms=False)
    bounds = property_bounds(compiled, request["method"])
    deployed = DeployedNetwork(
        loaded.onnx, network.input_shape, loaded.outside, largest=network.largest
    )
    if loaded.one_row_only:
        deployed.one_by_one()
    batch = deployed.settle_batch(BATCH_SIZES)
    x, without = _points(stated, network.input_shape, request["seed"])
    began = time.perf_counter()
    outputs = deployed(x)
    forward_s = time.perf_counter() - began
    warnings = [*loaded.warnings]
    if without:
        warnings.append(
            f"{without} of {len(stated.boxes)} boxes hold no float32 number for some input, such "
            "as 0.1 alone: no counterexample can lie in them."
        )
    try:
        parity = check_parity(
            compiled,
            x,
            outputs,
            deployed,
            clip=False,
            batched=batch != 1,
            seed=request["seed"],
            clock=Clock(None if budget is None else started + budget),
        )
    except OutOfTime:
        parity = {"max_difference": 0.0, "budget": 0.0, "unchecked": len(x)}
        warnings.append(
            "The time budget was spent while the deployed file's answers were still being compared "
            "with the verified network's. A larger time_budget_s leaves time to verify."
        )
    (folder / THUMBNAILS).write_bytes(thumbnails(x[:0], np.zeros(0, dtype=np.int64)))
    encoded = np.frombuffer(json.dumps(stated.to_json()).encode(), dtype=np.uint8)
    np.savez_compressed(folder / "data.npz", property=encoded)
    facts = {
        **loaded.facts(),
        "batch": batch,
        "samples": len(stated.boxes),
        "samples_per_shard": request["samples_per_shard"],
        "cases": stated.cases,
        "parity": parity,
        "forward_s": forward_s,
        "estimate": _estimate(request, stated, compiled, bounds, forward_s / len(x)),
        "prepare_s": time.monotonic() - started,
        "warnings": warnings,
    }
    (folder / "facts.json").write_text(json.dumps(facts))


def _estimate(
    request: Mapping[str, Any],
    stated: Property,
    compiled: CompiledNetwork,
    bounds: list[Bound],
    pass_s: float,
) -> dict[str, Any] | None:
    """What the verification may cost; None where the request says nothing of cost."""
    cost = request.get("cost")
    if cost is None:
        return None
    each, whole = request.get("sample_time_s"), request.get("time_budget_s")
    clocks = [whole, None if each is None else each * len(stated.boxes)]
    times = [seconds for seconds in clocks if seconds is not None]
    outputs = compiled.head.classes
    shape = compiled.input_shape
    return property_estimate(
        compiled,
        bounds,
        boxes=len(stated.boxes),
        questions=sum(questions(box, outputs) for box in stated.boxes),
        attack_passes=sum(attack_passes(box) for box in stated.boxes),
        splits=request["method"] == "auto"
        and any(splits(*outer_box(box, shape)) for box in stated.boxes),
        work=None if times else cost["work"],
        time_s=min(times, default=None),
        pass_s=pass_s,
        memory=cost["memory"],
    )


def _text(path: Path) -> str:
    if path.stat().st_size > MAX_BYTES:
        raise PropertyError("property_too_large", f"the file has more than {MAX_BYTES} bytes")
    try:
        return path.read_bytes().decode("ascii")
    except UnicodeDecodeError as error:
        raise PropertyError(
            "invalid_vnnlib", f"the file is no ASCII text: byte {error.start} does not belong to it"
        ) from error


def check_fit(stated: Property, loaded: LoadedModel) -> None:
    """Raises PropertyError where the variables are not the network's inputs and outputs."""
    network = loaded.network
    if loaded.takes_bytes:
        raise PropertyError(
            "property_mismatch",
            "the network takes bytes, of which a property says nothing",
            "export it with a float32 input, without the Cast at its beginning",
        )
    cut_off = "Sigmoid" if loaded.binary else network.dropped_output
    if cut_off is not None:
        raise PropertyError(
            "property_mismatch",
            f"the network ends in a {cut_off}, whose outputs are not covered",
            'export its probabilities as an array (an MLP by skl2onnx: options={"zipmap": False}), '
            "which a property may be about, or the logits before it (a linear classifier: "
            'options={id(model): {"raw_scores": True, "zipmap": False}})',
        )
    for what, asked, given in (
        ("inputs", stated.inputs, math.prod(network.input_shape)),
        ("outputs", stated.outputs, network.classes),
    ):
        if asked != given:
            raise PropertyError(
                "property_mismatch",
                f"the property declares {asked} {what}, the network has {given}",
                "X_0, X_1, ... are the inputs and Y_0, Y_1, ... the outputs in row-major order",
            )
    shape = stated.input_shape
    if shape is not None and not same_order(shape, network.input_shape):
        raise PropertyError(
            "property_mismatch",
            f"the property declares inputs of shape {list(shape)}, the network's are "
            f"{list(network.input_shape)}: as many numbers in another order",
            "declare the network's own shape, the batch of 1 before it, or one axis",
        )


def _points(
    stated: Property, shape: tuple[int, ...], seed: int
) -> tuple[np.ndarray[Any, np.dtype[np.float32]], int]:
    """Float32 inputs [N, *shape] of the boxes, and how many boxes hold none.

    Of a box that holds none, the number nearest to its middle. Raises PropertyError.
    """
    rng = np.random.default_rng(seed)
    each = max(2, POINTS // len(stated.boxes))
    found: list[torch.Tensor] = []
    without = 0
    for box in stated.boxes:
        lower, upper = outer_box(box, shape)
        inside = float32_box(box, shape)
        without += inside is None
        if len(found) * each < POINTS:
            found.append(
                Region.between(lower[None], upper[None]).x
                if inside is None
                else starting_points(*inside, each, rng)
            )
    return torch.cat(found).numpy(), without
