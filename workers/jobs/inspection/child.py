"""The limited child: parses model and data set, checks them, and writes what the shards need.

Run by ``prepare`` only, through ``sandbox.run_child``. It reads ``request.json`` in its
own folder and writes ``prepared/`` there, or ``problem.json``, which says what is wrong with the
upload. It has no access to Redis, the store or other jobs.
"""

from __future__ import annotations

import errno
import hashlib
import json
import shutil
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workers.jobs.inspection import sandbox

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from workers.jobs.datasets.arrays import DataSet
    from workers.jobs.inspection.loaded_model import LoadedModel
    from workers.jobs.inspection.rewritten_model import RewrittenModel

__all__ = ["inspect", "main"]

#: Samples on which our graph is compared with ONNX Runtime.
PARITY_SAMPLES = 1000


#: What the report of a job says whose time was over before the first bound.
_NO_TIME = (
    "The time budget was spent before any bound ran: the deployed file's answers were still being "
    "compared with the certified network's. A larger time_budget_s leaves time to certify."
)


#: What the report says of a data set without labels.
_NO_LABELS = (
    "The data set has no labels: what is certified are the network's own predictions, right or "
    "wrong, and no accuracy is known. Send labels with the samples (y in the .npz, dataset_labels "
    "beside a .npy) for accuracies."
)


def inspect(request: Mapping[str, Any], folder: Path) -> None:
    """Write network.json, weights.safetensors, deployed.onnx, thumbnails.bin, data.npz, facts.json.

    ``request``: ``model`` (path, format, architecture), ``normalization``, ``dataset`` (kind,
    files, split), ``selection``, ``norm``, ``method``, ``clip``, ``input_range``, ``seed``,
    ``bounds``, ``samples_per_shard``, ``time_budget_s``, of which ``prepare_s`` in the facts is
    what this took; ``summation``: with "partial-sums" all of this is about another file, which is
    rewritten.onnx then.
    Raises exceptions with a ``code`` for whatever is wrong with the upload.
    """
    import numpy as np
    import torch

    from models.onnx.deployed import DeployedNetwork
    from models.onnx.forms.file_labels import refuse_other_labels
    from service.contract.storage.pictures import THUMBNAILS
    from workers.jobs.datasets.arrays import Bounds, DataError
    from workers.jobs.datasets.layout import as_network_input, to_pixels, with_channels
    from workers.jobs.datasets.sources import read_source
    from workers.jobs.datasets.thumbnails import shown, thumbnails
    from workers.jobs.hardware.barrier_waits import watch_barriers
    from workers.jobs.inspection.estimate import estimate
    from workers.jobs.inspection.loaded_model import load_model
    from workers.jobs.inspection.rewritten_model import check_same_function
    from workers.jobs.inspection.valid_inputs import largest_pixel, valid_inputs
    from workers.jobs.report.doubts import data_doubts
    from workers.verification.cascade.coverage import covering_bounds
    from workers.verification.cascade.parity import check_parity
    from workers.verification.cascade.parity_inputs import BATCH_SIZES
    from workers.verification.clock import Clock, OutOfTime
    from workers.verification.graph.compiled_network import CompiledNetwork
    from workers.verification.rounding import answer_gap

    watch_barriers(torch.get_num_threads())
    sandbox.opens_uploads(folder.parent)
    started, budget = time.monotonic(), request.get("time_budget_s")
    loaded = load_model(request, folder)
    stated, made = loaded.stated, None
    if request.get("summation") == "partial-sums":
        loaded, made = _in_partial_sums(loaded, folder)
    network, outside = loaded.network, loaded.outside
    network.save(folder)
    # The form of the file that is certified, and nothing else of it.
    (folder / "deployed.onnx").write_bytes(loaded.onnx)
    # No norms: the shards compute them once, and keep them.
    compiled = CompiledNetwork.compile(network, norms=False)
    methods, _ = covering_bounds(
        compiled, request["method"], request["norm"], request.get("effort", "standard")
    )
    deployed = DeployedNetwork(loaded.onnx, network.input_shape, outside, largest=network.largest)
    if loaded.one_row_only:
        deployed.one_by_one()
    batch = deployed.settle_batch(BATCH_SIZES)

    source = request["dataset"]
    files = {role: Path(path) for role, path in source["files"].items()}
    bounds = Bounds(**request["bounds"])
    data = read_source(
        source["kind"],
        files,
        source["split"],
        request["selection"],
        bounds,
        loaded.class_names or (),
    )
    stored = data.x if data.classes is None else with_channels(data.x, network.input_shape)
    inputs = valid_inputs(
        request.get("input_range", [0, 1]),
        clip=request["clip"],
        shape=network.input_shape,
        takes_bytes=loaded.takes_bytes,
    )
    placed = as_network_input(stored, network.input_shape)
    x = to_pixels(placed, clip=inputs.clip, numbers=inputs.numbers)
    began = time.perf_counter()
    logits = deployed(x)
    forward_s = time.perf_counter() - began
    if logits.shape != (len(x), network.classes):
        raise DataError(
            "shape_mismatch",
            f"the model answers with shape {list(logits.shape[1:])}, its graph says "
            f"{network.classes} classes",
        )
    labels = _labels(data, logits)
    some = slice(None, PARITY_SAMPLES)
    if stated is not None:
        gap = answer_gap(network.dropped_output)
        refuse_other_labels(
            stated, x[some], deployed, deployed.given, gap=gap, seed=request["seed"]
        )
    pixel = largest_pixel(request.get("input_range", [0, 1]), takes_bytes=loaded.takes_bytes)
    doubt = _doubts(deployed, x, data.y, logits, request["normalization"], pixel)
    clock = Clock(None if budget is None else started + budget)
    compared: dict[str, Any] = {"difference": None, "largest_share": None, "inputs": {}}
    try:
        if made is not None:
            about = {"clip": inputs.clip, "sizes": BATCH_SIZES, "seed": request["seed"]}
            compared = check_same_function(
                made, x[some], logits[some], deployed, clock=clock, **about
            )
        parity = check_parity(
            compiled,
            x[some],
            logits[some],
            deployed,
            clip=inputs.clip,
            batched=batch != 1,
            seed=request["seed"],
            clock=clock,
        )
    except OutOfTime:
        # The time budget is spent: no shard can certify anything.
        parity = {"max_difference": 0.0, "budget": 0.0, "unchecked": len(x)}
        doubt.append(_NO_TIME)
    digest = hashlib.sha256()
    for array in (x, labels, data.indices):
        digest.update(np.ascontiguousarray(array).data)
    (folder / THUMBNAILS).write_bytes(thumbnails(shown(x, inputs.clip), data.indices))
    np.savez(folder / "data.npz", x=x, y=labels, index=data.indices, logits=logits)
    facts = {
        **loaded.facts(),
        "rewritten": None if made is None else made.facts(request["model"]["source"], compared),
        "inputs": inputs.to_json(),
        "batch": batch,
        "labelled": data.y is not None,
        "total": data.size,
        "samples": len(x),
        "samples_per_shard": request["samples_per_shard"],
        "parity": parity,
        "forward_s": forward_s,
        "estimate": None
        if (cost := request.get("cost")) is None
        else estimate(compiled, methods, samples=len(x), pass_s=forward_s / len(x), **cost),
        "prepare_s": time.monotonic() - started,
        "classes_of_folders": data.classes,
        "data_digest": f"sha256:{digest.hexdigest()}",
        "warnings": [*loaded.warnings, *data_doubts(data, x, network.classes, inputs), *doubt],
    }
    (folder / "facts.json").write_text(json.dumps(facts))


def _doubts(
    logits_of: Callable[[NDArray[np.float32]], NDArray[np.float32]],
    x: NDArray[np.float32],
    y: NDArray[np.int64] | None,
    logits: NDArray[np.float32],
    given: Mapping[str, Sequence[float]] | None,
    pixel: float | None,
) -> list[str]:
    """Sentences on a normalisation or labels that look wrong.

    x [N, *shape], y [N]; logits [N, classes]: those of x. pixel: see ``largest_pixel``.
    """
    from workers.jobs.inspection.label_check import chance_doubt, label_doubt
    from workers.jobs.inspection.normalization_check import is_table, normalization_doubt
    from workers.jobs.inspection.unlike_samples import unlike_the_samples

    table = is_table(x.shape[1:])
    unlike = unlike_the_samples(x, given, features=table)
    first = [] if unlike is None else [unlike]
    if y is None:
        return [*first, _NO_LABELS]
    said = label_doubt(logits, y)
    if said is None and (table or pixel is not None):
        scale = 1.0 if table or pixel is None else pixel
        said = normalization_doubt(logits_of, x, y, logits, given, scale)
        if said is not None:
            # The same, with the accuracies of both.
            return [said]
    said = said or chance_doubt(logits, y, x)
    return first if said is None else [*first, said]


def _in_partial_sums(
    upload: LoadedModel, folder: Path
) -> tuple[LoadedModel, RewrittenModel | None]:
    """The model that is certified, and what was made of the upload: a file beside the others; None
    where nothing would change."""
    from workers.jobs.inspection.loaded_model import LoadedModel
    from workers.jobs.inspection.rewritten_model import rewritten_model

    made = rewritten_model(upload)
    if isinstance(made, str):
        return replace(upload, warnings=[*upload.warnings, made]), None
    (folder / "rewritten.onnx").write_bytes(made.file)
    loaded = LoadedModel(
        made.network,
        made.deployed,
        upload.outside,
        made.one_row_only,
        output=made.output,
        pairing=upload.pairing,
        class_names=upload.class_names,
        warnings=[*upload.warnings, *made.warnings],
    )
    return loaded, made


def _labels(data: DataSet, logits: NDArray[np.float32]) -> NDArray[np.int64]:
    """The labels [N]; without any, the predictions are what is certified."""
    import numpy as np

    from workers.jobs.datasets.arrays import check_labels

    if data.y is None:
        return logits.argmax(axis=1).astype(np.int64)
    check_labels(data, logits.shape[1], of="network")
    return data.y


def main() -> int:
    """Take on the limits, then inspect. Returns 0, 3 (``problem.json`` says what is wrong with the
    upload) or ``sandbox.NO_ROOM`` (the disk is full)."""
    sandbox.enter(sys.argv[1:])
    try:
        return _inspect_and_state()
    except Exception as error:
        if not sandbox.found_no_room(error):
            raise
        return sandbox.NO_ROOM


def _inspect_and_state() -> int:
    request = json.loads(Path("request.json").read_text())
    folder = Path("prepared")
    # A child of a fork server that did not answer in time may have begun here before it was ended.
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    problem: dict[str, str | None]
    try:
        if request.get("training"):
            from workers.jobs.inspection.training_data import write_training_data

            write_training_data(request, folder)
        elif request.get("property"):
            from workers.jobs.inspection.loaded_model import load_model
            from workers.jobs.inspection.property_inspection import inspect_property

            sandbox.opens_uploads(folder.parent)
            inspect_property(request, folder, load_model(request, folder))
        else:
            inspect(request, folder)
    except OSError as error:
        if error.errno != errno.EFBIG:
            raise
        problem = {
            "code": "too_large",
            "detail": "what is made of model and data set is larger than a file may be",
            "hint": "send fewer samples, or raise CERTSERVE_MAX_INFLATED_BYTES",
        }
    except MemoryError:
        problem = {
            "code": "too_large",
            "detail": "model and data set need more memory than an inspection may take",
            "hint": "send fewer samples, or raise CERTSERVE_INSPECTION_MEMORY_BYTES",
        }
    except Exception as error:
        code = getattr(error, "code", None)
        if not isinstance(code, str):
            raise
        problem = {
            "code": code,
            "detail": getattr(error, "message", None) or str(error),
            "hint": getattr(error, "hint", None) or None,
            "field": getattr(error, "field", None)
            or _place(code, training=bool(request.get("training"))),
        }
    else:
        return 0
    Path("problem.json").write_text(json.dumps(problem))
    return 3


#: Codes of what is wrong with the architecture of a state dict, not with its tensors.
_OF_ARCHITECTURE = ("invalid_architecture", "missing_architecture", "unknown_architecture")


def _place(code: str, *, training: bool) -> str:
    """The field that a problem is about where it does not say so itself."""
    if training:
        return "architecture"
    return "spec.architecture" if code in _OF_ARCHITECTURE else "model"


if __name__ == "__main__":
    sys.exit(main())
