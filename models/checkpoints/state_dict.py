"""State dicts as networks: assigns tensors to the layers of a given architecture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from models.architectures.layer_lists import Blueprint
from models.architectures.published import blueprint
from models.checkpoints.pairing import TENSOR_NAMES, Group, mismatch, natural, pair_modules
from models.checkpoints.reader import LAYERS, read_checkpoint, stated_layers
from models.errors import ModelError
from models.layers.activations import ReLUTheta
from models.layers.kinds import BatchNorm
from models.network import Network

__all__ = [
    "IGNORED_TENSORS",
    "Loaded",
    "load_checkpoint",
    "network_of_state_dict",
    "read_network",
    "weights_of",
]

#: Tensors beside the weights, by the last part of their name, that inference does not use:
#: batch norm's counter, COLT's slopes, and power iteration's vectors.
IGNORED_TENSORS = ("num_batches_tracked", "deepz_lambda", "u", "u_train", "u_test")
#: The tensors of a normalisation.
_NORMALIZATION = {"mean", "std"}
#: Keys under which training scripts store the state dict, and keys that may be beside it.
_WRAPPERS = ("state_dict", "model_state_dict", "model", "net")
#: What holds tensors of its own, and is no network. Figures and words may have any name.
_BESIDE = (
    "amp",
    "lr_scheduler",
    "optim",
    "optimizer",
    "optimizer_state_dict",
    "sampler_indices",
    "scaler",
    "scheduler",
    "scheduler_state_dict",
)


@dataclass(frozen=True)
class Loaded:
    """A state dict's network; tensor -> layer and parameter; warnings about that pairing."""

    network: Network
    pairing: Mapping[str, str]
    warnings: Sequence[str]


def load_checkpoint(
    path: Path, format: str, architecture: str | Mapping[str, Any], *, activation: str = "relu"
) -> Network:
    """The network that ``read_network`` reads, alone."""
    return read_network(path, format, architecture, activation=activation).network


def read_network(
    path: Path,
    format: str,
    architecture: str | Mapping[str, Any],
    *,
    activation: str = "relu",
    classifier: bool = True,
) -> Loaded:
    """The network of a checkpoint (``format`` "safetensors" or "pt"). Raises ModelError.

    Layers with weights take the checkpoint's modules of the same kind in order; where every such
    layer of the list carries a name, by that name (``models.checkpoints.pairing``). Of a file with
    a list of state dicts, ``"stage"`` of the architecture (from 1) says which is meant. A layer
    list of one output is refused unless ``classifier`` is False: a property may be about it.
    """
    stage = None
    if not isinstance(architecture, str) and "stage" in architecture:
        architecture = dict(architecture)
        stage = architecture.pop("stage")
    plan = blueprint(architecture, activation=activation, classifier=classifier).deployed()
    loaded = network_of_state_dict(
        _state_dict(read_checkpoint(path, format), stage), plan, ordered=format == "pt"
    )
    network = loaded.network
    stated = stated_layers(path) if format == "safetensors" else None
    if stated is not None and stated != layers_text(network):
        # The weights would fit, but the certified network would not be the one that was trained.
        raise ModelError(
            f"the file says that its layers are {stated[:500]!r}, the architecture's are "
            f"{layers_text(network)[:500]!r}",
            code="architecture_mismatch",
            hint='name the activation too: {"name": ..., "activation": "maxmin"}',
        )
    return loaded


def layers_text(network: Network) -> str:
    """Kinds of the layers in order, as ``weights_of`` writes them into the file."""
    return " ".join(network.layer(node.name).kind for node in network.nodes)


def weights_of(network: Network) -> bytes:
    """A safetensors file of the network's state dict that says what its layers are."""
    tensors = network.stored_tensors()
    return safetensors.torch.save(tensors, metadata={LAYERS: layers_text(network)})


def network_of_state_dict(
    tensors: Mapping[str, Tensor], plan: Blueprint, *, ordered: bool
) -> Loaded:
    """The network of a plan with a state dict's tensors.

    ``ordered``: the tensors stand in the order of the layers (safetensors sorts them by name).
    Raises ModelError (architecture_mismatch, unsupported_dtype, non_finite_weights).
    """
    groups = _without_constants(_without_normalization(_groups(tensors, plan.given), plan), plan)
    if not ordered:
        groups = dict(sorted(groups.items(), key=lambda item: natural(item[0])))
    constant = {prefix.removeprefix("layers.") for prefix in _given(plan)}
    wanted = {
        node.name: plan.skeleton.layer(node.name).kind
        for node in plan.skeleton.nodes
        if plan.skeleton.layer(node.name).kind in TENSOR_NAMES
        and node.name not in constant
        and node.name not in plan.skeleton.shared
    }
    found = pair_modules(groups, wanted, plan, ordered=ordered)
    parameters: dict[str, Tensor] = {}
    pairing: dict[str, str] = {}
    for node, prefix in found.modules.items():
        fitted = _fitted(groups[prefix], prefix, node, wanted[node], plan)
        for key, (name, tensor) in fitted.items():
            parameters[f"layers.{node}.{key}"] = tensor
            pairing[f"{prefix}.{name}" if prefix else name] = f"{node}.{key}"
    network = plan.network(parameters)
    if network.non_finite():
        raise ModelError(
            f"the weights hold NaN or infinity: {network.non_finite()[:4]}",
            code="non_finite_weights",
        )
    for row in network.nodes:
        layer = network.layer(row.name)
        if isinstance(layer, BatchNorm) and not bool((layer.var >= 0).all()):
            raise ModelError(f"a variance of {row.name} is negative", code="invalid_network")
        if isinstance(layer, ReLUTheta) and not bool((layer.theta >= 0).all()):
            raise ModelError(f"a threshold of {row.name} is negative", code="invalid_network")
    return Loaded(network, pairing, found.warnings)


def _state_dict(content: Any, stage: object) -> dict[str, Tensor]:
    """The state dict inside what a file holds, out of its wrapper, or the one of a cascade's stage
    (from 1)."""
    if isinstance(content, dict):
        wrapped = [key for key in _WRAPPERS if isinstance(content.get(key), dict | list)]
        if len(wrapped) == 1:
            named = [key for key in content if key not in wrapped and key not in _BESIDE]
            beside = [str(key)[:60] for key in named if _holds_tensors(content[key])]
            if beside:
                mismatch(
                    f"the file holds {beside[:8]} beside {wrapped[0]!r}: it is unclear which of "
                    "them is the network"
                )
            content = content[wrapped[0]]
    if isinstance(content, list):
        content = _stage(content, stage)
    elif stage is not None:
        mismatch("the architecture names a stage, the file holds one network")
    if not isinstance(content, dict) or not content:
        raise ModelError("the checkpoint holds no state dict", code="invalid_checkpoint")
    others = [str(k)[:60] for k, v in content.items() if not isinstance(v, Tensor)]
    if others or not all(isinstance(key, str) for key in content):
        raise ModelError(
            f"the state dict holds other things than tensors: {others[:8]}",
            code="invalid_checkpoint",
        )
    # A pickle may hold halves of surrogate pairs, which no report can be written with.
    halves = [key for key in content if key != key.encode(errors="replace").decode()]
    if halves:
        raise ModelError(
            f"the name {halves[0][:60]!r} in the state dict is no Unicode text",
            code="invalid_checkpoint",
        )
    return content


def _stage(cascade: list[Any], stage: object) -> Any:
    """One of the networks of a list."""
    known = f"stages 1 to {len(cascade)}"
    if stage is None and len(cascade) != 1:
        mismatch(
            f"the checkpoint is a cascade of {len(cascade)} networks ({known})",
            hint='say which in the architecture: {"name": ..., "stage": 1}',
        )
    stage = 1 if stage is None else stage
    if type(stage) is not int or not 1 <= stage <= len(cascade):
        mismatch(f"there is no stage {str(stage)[:20]}: the checkpoint has {known}")
    return cascade[stage - 1]


def _holds_tensors(value: Any) -> bool:
    """Whether there is a tensor of more than one number somewhere in it."""
    stack = [value]
    while stack:
        entry = stack.pop()
        if isinstance(entry, Tensor) and entry.dim() > 0:
            return True
        if isinstance(entry, dict):
            stack.extend(entry.values())
        elif isinstance(entry, list | tuple):
            stack.extend(entry)
    return False


def _groups(tensors: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> dict[str, Group]:
    """Tensors by module, without what is ignored by name. ``given``: constants that we write."""
    groups: dict[str, Group] = {}
    for key, tensor in tensors.items():
        prefix, _, name = key.rpartition(".")
        if name in IGNORED_TENSORS:
            continue
        if tensor.dtype != torch.float32 and key not in given:
            raise ModelError(
                f"the tensor {key!r} is {str(tensor.dtype).removeprefix('torch.')}",
                code="unsupported_dtype",
                hint="only float32 networks are certified: convert the weights to float32",
            )
        groups.setdefault(prefix, {})[name] = tensor
    return groups


def _given(plan: Blueprint) -> dict[str, Group]:
    """The tensors that the architecture itself gives, by module."""
    given: dict[str, Group] = {}
    for key, tensor in plan.given.items():
        prefix, _, name = key.rpartition(".")
        given.setdefault(prefix, {})[name] = tensor
    return given


def _without_normalization(groups: dict[str, Group], plan: Blueprint) -> dict[str, Group]:
    """Drop the normalisation that our own state dicts hold, once it is the plan's."""
    stored = [prefix for prefix, group in groups.items() if group.keys() == _NORMALIZATION]
    if not stored:
        return groups
    ours = [group for group in _given(plan).values() if group.keys() == _NORMALIZATION]
    if len(ours) != len(stored) or not all(
        _same(group, groups[prefix]) for group, prefix in zip(ours, stored, strict=True)
    ):
        mismatch(f"the normalisation in {stored} is not the architecture's")
    return {prefix: group for prefix, group in groups.items() if prefix not in stored}


def _without_constants(groups: dict[str, Group], plan: Blueprint) -> dict[str, Group]:
    """Drop the constants of deployed sub-graphs that our own state dicts hold, once they agree."""
    stored = {prefix: group for prefix, group in _given(plan).items() if prefix in groups}
    for prefix, group in stored.items():
        if not _same(group, groups[prefix]):
            mismatch(f"the constants in {prefix!r} are not the architecture's")
    return {prefix: group for prefix, group in groups.items() if prefix not in stored}


def _same(ours: Group, theirs: Group) -> bool:
    return ours.keys() == theirs.keys() and all(torch.equal(ours[k], theirs[k]) for k in ours)


def _fitted(
    group: Group, prefix: str, node: str, kind: str, plan: Blueprint
) -> dict[str, tuple[str, Tensor]]:
    """A module's tensors (name, tensor) under our names, every shape as the layer wants it."""
    expected = plan.skeleton.layer(node).state_dict()
    fitted: dict[str, tuple[str, Tensor]] = {}
    left = dict(group)
    for name, shape in ((name, tuple(tensor.shape)) for name, tensor in expected.items()):
        alias = next((alias for alias in TENSOR_NAMES[kind][name] if alias in left), None)
        if alias is None:
            mismatch(f"{prefix or 'the checkpoint'} has no {name!r}, which {node} needs: {shape}")
        given = left.pop(alias)
        if tuple(given.shape) != shape:
            mismatch(
                f"{prefix}.{name} has shape {tuple(given.shape)}, the architecture's {node} {shape}"
            )
        else:
            fitted[name] = alias, given.detach().contiguous()
    if left:
        mismatch(f"{prefix} has {sorted(left)}, which {node} does not take")
    return fitted
