"""The limited child's other task: reading the samples that a training asks for."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workers.jobs.inspection.sandbox import opens_uploads

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from workers.jobs.datasets.arrays import Bounds

__all__ = ["FILES", "save_array", "write_training_data"]

#: The files that the child writes.
FILES = ("x.npy", "y.npy", "facts.json")


def write_training_data(request: Mapping[str, Any], folder: Path) -> None:
    """Write x.npy (bytes as they are, floats as float32) [N, *input shape], y.npy and facts.json.

    ``request``: ``architecture``, ``activation``, ``dataset`` (kind, files, split), ``held_out``
    (share of the samples that is left out), ``report`` (what the certification will ask for:
    ``normalization``, ``dataset`` or None where it is held out, ``selection``, ``clip``; None
    without one), ``bounds``. ``facts.json``: ``samples`` trained on, ``total``, ``held`` (the rows
    left out). Raises exceptions with a ``code`` where data and architecture do not go together.
    """
    import numpy as np

    from models.architectures.published import blueprint
    from workers.jobs.datasets.arrays import Bounds, DataError, check_labels
    from workers.jobs.datasets.layout import as_network_input, to_pixels, with_channels
    from workers.jobs.datasets.sources import read_source

    opens_uploads(folder.parent)
    plan = blueprint(request["architecture"], activation=request["activation"])
    shape, classes = plan.skeleton.input_shape, plan.skeleton.classes
    bounds = Bounds(**request["bounds"])
    if request["report"] is not None:
        _check_report(request["report"], shape, classes, bounds)
    source = request["dataset"]
    files = {role: Path(path) for role, path in source["files"].items()}
    data = read_source(source["kind"], files, source["split"], "all", bounds)
    if data.y is None:
        raise DataError(
            "missing_labels", "the data set has no labels", hint="training needs x and y"
        )
    check_labels(data, classes, of="architecture")
    stored = data.x if data.classes is None else with_channels(data.x, shape)
    x = as_network_input(stored, shape)
    if x.dtype != np.uint8:
        try:
            x = to_pixels(x, clip=True)
        except DataError as error:
            if error.code == "sample_out_of_range":
                error.hint = "store pixels in [0, 1]: epsilon is measured in them"
            raise
    held = _held_out(len(x), request["held_out"])
    if request["held_out"] and not len(held):
        raise DataError(
            "too_few_samples",
            f"of {len(x)} samples none would be kept for the certification",
            hint='name a "test_dataset", or train with "certify": null',
        )
    kept = np.setdiff1d(np.arange(len(x)), held)
    if len(kept) < 2:
        raise DataError(
            "too_few_samples",
            f"{len(x)} samples are too few to train on",
            hint="a data set of two samples or more",
        )
    save_array(folder / "x.npy", x[kept] if len(held) else x)
    save_array(folder / "y.npy", data.y[kept])
    facts = {"samples": len(kept), "total": len(x), "held": held.tolist()}
    (folder / "facts.json").write_text(json.dumps(facts))


def _check_report(
    report: Mapping[str, Any], shape: tuple[int, ...], classes: int, bounds: Bounds
) -> None:
    """Refuse now what the certification would refuse hours later, after the training."""
    from models.errors import ModelError
    from models.network import per_channel
    from workers.jobs.datasets.arrays import DataError, check_labels
    from workers.jobs.datasets.layout import as_network_input, to_pixels, with_channels
    from workers.jobs.datasets.sources import read_source

    if report["normalization"] is not None:
        for values in report["normalization"].values():
            try:
                per_channel(values, shape)
            except ModelError as error:
                refused = DataError("invalid_normalization", error.message, hint=error.hint)
                refused.field = "certify.normalization"
                raise refused from error
    source = report["dataset"]
    if source is None:
        return
    files = {role: Path(path) for role, path in source["files"].items()}
    try:
        data = read_source(source["kind"], files, source["split"], report["selection"], bounds)
        check_labels(data, classes, of="architecture")
        stored = data.x if data.classes is None else with_channels(data.x, shape)
        to_pixels(as_network_input(stored, shape), clip=report["clip"])
    except DataError as error:
        of_indices = error.code in ("index_out_of_range", "invalid_indices")
        error.field = "certify.indices" if of_indices else report["field"]
        raise


def save_array(path: Path, array: NDArray[Any]) -> None:
    """``np.save``, but its OSError says what is wrong: numpy's own has no errno, be it that the
    disk is full or that the file is as large as it may be."""
    import numpy as np

    array = np.ascontiguousarray(array)
    with path.open("wb") as file:
        header = np.lib.format.header_data_from_array_1_0(array)
        np.lib.format.write_array_header_1_0(file, header)
        file.write(array.data)


def _held_out(count: int, share: float) -> NDArray[np.int64]:
    """Rows, in order, that are not trained on. They are random, because a file may be sorted by
    class, and the same in every training, whatever its seed."""
    import numpy as np

    order = np.random.default_rng(0).permutation(count)
    return np.sort(order[: int(count * share)])
