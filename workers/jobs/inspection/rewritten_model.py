"""Another file for an uploaded network, its wide sums in partial sums, which is certified instead.

The limited child makes it, like all else that comes from an upload. From then on the rewritten file
is the model of the job: nothing that is found of it is said of the uploaded one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.errors import ModelError
from models.layers.normalization import Normalize
from models.network import Network
from models.onnx.deployed import DeployedNetwork
from models.onnx.importer import read_onnx_bytes
from models.rewriting import Rewritten, rewritten, written
from workers.verification.cascade.parity import BLOCK, DeploymentMismatch, check_parity
from workers.verification.cascade.parity_inputs import random_inputs
from workers.verification.clock import Clock
from workers.verification.forward.margins import logit_enclosure
from workers.verification.forward.propagation import propagate
from workers.verification.graph.compiled_network import CompiledNetwork
from workers.verification.input_range import Clip
from workers.verification.region import Region
from workers.verification.rounding import Rounding, exact_arithmetic

if TYPE_CHECKING:
    from workers.jobs.inspection.loaded_model import LoadedModel

__all__ = ["RewrittenModel", "check_same_function", "rewritten_model"]

NAME_LENGTH = 80
#: Of what float32 may round, what two evaluations in float64 may be apart: 2^-29, twice, with room.
IN_FLOAT64 = 2.0**-26


@dataclass(frozen=True)
class RewrittenModel:
    """The uploaded model, the file that was made of it, and the layers that are other ones there.

    network, deployed, batch: as ``ImportedOnnx`` has them, of the file; network with the
    normalisation that the job asks for.
    """

    upload: LoadedModel
    file: bytes
    layers: Sequence[str]
    network: Network
    deployed: bytes
    one_row_only: bool
    output: str
    warnings: Sequence[str]

    def facts(self, source: Mapping[str, Any], compared: Mapping[str, Any]) -> dict[str, Any]:
        """What reports say of it. source: id, format and name of the upload; compared: what
        ``check_same_function`` found."""
        stem = PurePath(source["name"]).stem[:NAME_LENGTH] or "model"
        return {
            "id": "sha256:" + hashlib.sha256(self.file).hexdigest(),
            "name": f"{stem}.partial-sums.onnx",
            "size": len(self.file),
            "from": {
                **{name: source[name] for name in ("id", "format", "name")},
                "layers": [*self.layers],
                **compared,
            },
        }


def rewritten_model(upload: LoadedModel) -> RewrittenModel | str:
    """The model with its wide sums in partial sums; where none would change, a sentence that says
    so. Raises ModelError (not_rewritable)."""
    if upload.takes_bytes:
        raise _refusal(
            "the model takes bytes: the rewritten file would take floats",
            'export it with a float32 input, or leave "summation" out',
        )
    # What is deployed is the file's own network, without the normalisation in front of it.
    found = rewritten(read_onnx_bytes(upload.onnx).network)
    if not found.changed:
        return (
            "No sum of this network is rewritten in partial sums: "
            + (
                "those that are wide are windows on one channel, or have too many outputs."
                if found.wide
                else "none is so wide that it would gain by it, or all are already."
            )
            + " The file is certified as it was uploaded."
        )
    file = _exported(found)
    try:
        imported = read_onnx_bytes(file)
    except ModelError as error:
        # Partial sums are more nodes and more numbers on the way than what was uploaded.
        raise _refusal(
            f"the rewritten file is beyond what is taken here: {error.message}",
            'leave "summation" out: the uploaded file is then certified as it is',
        ) from error
    network = imported.network
    if upload.outside is not None:
        network = network.normalized(upload.outside["mean"], upload.outside["std"])
    warnings = [*_on_normalization(upload)]
    if found.wide:
        warnings.append(
            f"{len(found.wide)} layers have wide sums that stay as they are, windows on one "
            f"channel or layers of too many outputs: {', '.join(found.wide[:5])}."
        )
    left_out = "Sigmoid" if upload.binary else upload.network.dropped_output
    if left_out is not None:
        scores = "two scores, 0 and the uploaded file's one" if upload.binary else "the scores"
        warnings.append(
            f"The rewritten file answers with {scores} before the final {left_out}: its class is "
            "the one whose score is strictly the largest."
        )
    return RewrittenModel(
        upload,
        file,
        found.changed,
        network,
        imported.deployed,
        imported.batch == 1,
        imported.output,
        warnings,
    )


def _on_normalization(upload: LoadedModel) -> list[str]:
    """Whether the rewritten file has the normalisation that the spec names: that of a state dict is
    written into it, that of an ONNX file stays in front of it."""
    if upload.outside is not None:
        return [
            "The rewritten file is without the spec's normalisation, as the uploaded one is: give "
            "it normalised data."
        ]
    if any(isinstance(layer, Normalize) for layer in upload.network.layers.values()):
        return ["The rewritten file normalises its input itself: give it the data as they are."]
    return []


def _exported(found: Rewritten) -> bytes:
    try:
        return written(found)
    except ModelError as error:
        raise _refusal(
            f"the network cannot be written as another file: {error.message}",
            'leave "summation" out: the uploaded file is then certified as it is',
        ) from error


def _refusal(message: str, hint: str) -> ModelError:
    error = ModelError(message, code="not_rewritable", hint=hint)
    error.field = "spec.summation"  # type: ignore[attr-defined]
    return error


def check_same_function(
    made: RewrittenModel,
    x: NDArray[np.float32],
    rewritten_logits: NDArray[np.float32],
    deployed: DeployedNetwork,
    *,
    clip: Clip,
    sizes: Sequence[int],
    seed: int,
    clock: Clock,
) -> dict[str, Any]:
    """Hold the uploaded file and the rewritten one, in ONNX Runtime, against ONE enclosure: that of
    the uploaded network, in any order of summation, which sums of partial sums are. Before that
    both networks are compared in float64, where rounding hides 2^-29 times as much.

    x [N, *shape]: the samples; deployed: the rewritten file, and its logits at x. Returns
    difference (of the two files on the samples), largest_share and inputs, as in ``check_parity``.
    Raises DeploymentMismatch, OutOfTime.
    """
    upload = made.upload
    before = DeployedNetwork(
        upload.onnx, upload.network.input_shape, upload.outside, largest=upload.network.largest
    )
    rng = np.random.default_rng(seed)
    if upload.one_row_only:
        before.one_by_one()
    before.settle_batch(sizes)
    compiled = CompiledNetwork.compile(upload.network, norms=False)
    _check_in_float64(
        compiled,
        CompiledNetwork.compile(made.network, norms=False),
        np.concatenate([x[:BLOCK], random_inputs(x, BLOCK, rng, clip=clip).x]),
        clock,
    )
    logits = before(x)
    share, inputs = 0.0, {}

    def check(
        name: str, given: NDArray[np.float32], run: Callable[[NDArray[np.float32]], Any], batch: Any
    ) -> None:
        nonlocal share, inputs
        try:
            found = check_parity(
                compiled, x, given, run, clip=clip, batched=batch != 1, seed=seed, clock=clock
            )
        except DeploymentMismatch as error:
            raise DeploymentMismatch(f"{name}: {error.message}", error.hint) from error
        share, inputs = max(share, found["largest_share"]), found["inputs"]

    check("the uploaded file", logits, before, before.batch)
    check("the rewritten file", rewritten_logits, deployed, deployed.batch)
    off = np.abs(logits.astype(np.float64) - rewritten_logits.astype(np.float64))
    # Where float32 may overflow both may have no number.
    difference = float(np.nan_to_num(off, nan=0.0, posinf=0.0).max())
    return {"difference": difference, "largest_share": share, "inputs": inputs}


def _check_in_float64(
    uploaded: CompiledNetwork, made: CompiledNetwork, x: NDArray[np.float32], clock: Clock
) -> None:
    """Raise DeploymentMismatch where the two networks are not one function at x."""
    rounding = Rounding.sound(torch.float64)

    def evaluated(compiled: CompiledNetwork, rows: Tensor) -> tuple[Tensor, Tensor]:
        region = Region(rows, torch.zeros(len(rows), dtype=torch.float64), "linf", False)
        state = propagate(
            compiled, region, rounding=rounding, dtype=torch.float64, ball=False, clock=clock
        )
        return logit_enclosure(compiled.head, state, rounding)

    with exact_arithmetic(), torch.no_grad():
        for rows in torch.from_numpy(np.ascontiguousarray(x)).split(BLOCK):
            logits, budget = evaluated(uploaded, rows)
            others, _ = evaluated(made, rows)
            # Below 0: float32 may overflow there, and nothing is certified.
            known = (budget >= 0).all(1)
            off, allowed = (logits - others).abs()[known], IN_FLOAT64 * budget[known]
            # Written so that a NaN is another function.
            if not bool((off <= allowed).all()):
                raise DeploymentMismatch(
                    "the rewritten network is another function than the uploaded one: in float64 "
                    f"their logits are {float(off.max()):.3g} apart",
                    'this is a fault of the service: leave "summation" out, and send the file to '
                    "its operator",
                )
