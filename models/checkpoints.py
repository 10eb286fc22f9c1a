"""State dicts as networks: tensors are given to the layers of a stated architecture."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

import safetensors.torch
import torch
from torch import Tensor

from models.activations import AtLeast, AtMost, ReLUTheta
from models.architectures import blueprint
from models.checkpoint_files import LAYERS, read_checkpoint, stated_layers
from models.errors import ModelError
from models.layer_lists import Blueprint
from models.layers import BatchNorm, Conv2d, Linear
from models.network import Network

__all__ = ["IGNORED_TENSORS", "load_checkpoint", "network_of_state_dict", "weights_of"]

#: Tensors beside the weights, by the last part of their name, that inference does not use:
#: batch norm's counter, COLT's slopes, and power iteration's vectors.
IGNORED_TENSORS = ("num_batches_tracked", "deepz_lambda", "u", "u_train", "u_test")
#: Keys under which training scripts keep the state dict, and what may stand beside it.
_WRAPPERS = ("state_dict", "model_state_dict")
_BESIDE = (
    "acc",
    "args",
    "arch",
    "best_acc",
    "epoch",
    "err",
    "iteration",
    "loss",
    "lr_scheduler",
    "optimizer",
    "optimizer_state_dict",
    "sampler_indices",
    "scheduler",
    "scheduler_state_dict",
    "step",
)
#: A layer's tensors by the names state dicts give them.
_NAMES: dict[str, dict[str, tuple[str, ...]]] = {
    Conv2d.kind: {"weight": ("weight",), "bias": ("bias",)},
    Linear.kind: {"weight": ("weight",), "bias": ("bias",)},
    BatchNorm.kind: {
        "weight": ("weight",),
        "bias": ("bias",),
        "mean": ("running_mean", "mean"),
        "var": ("running_var", "var"),
    },
    ReLUTheta.kind: {"theta": ("theta", "threshold")},
    AtMost.kind: {"value": ("value",)},
    AtLeast.kind: {"value": ("value",)},
}

Group = dict[str, Tensor]


def load_checkpoint(
    path: Path, format: str, architecture: str | Mapping[str, Any], *, activation: str = "relu"
) -> Network:
    """The network of a checkpoint (``format`` "safetensors" or "pt"). Raises ModelError.

    Layers with weights take the checkpoint's modules of the same kind in order; where every such
    layer of the list carries a name, by that name.
    """
    plan = blueprint(architecture, activation=activation).deployed()
    network = network_of_state_dict(
        _state_dict(read_checkpoint(path, format)), plan, ordered=format == "pt"
    )
    stated = stated_layers(path) if format == "safetensors" else None
    if stated is not None and stated != layers_text(network):
        # The weights fit all the same: it would be certified, and is not what was trained.
        raise ModelError(
            f"the file says that its layers are {stated[:500]!r}, the architecture's are "
            f"{layers_text(network)[:500]!r}",
            code="architecture_mismatch",
            hint='name the activation too: {"name": ..., "activation": "maxmin"}',
        )
    return network


def layers_text(network: Network) -> str:
    """Kinds of the layers in order, as ``weights_of`` writes them into the file."""
    return " ".join(network.layer(node.name).kind for node in network.nodes)


def weights_of(network: Network) -> bytes:
    """A safetensors file of the network's state dict that says what its layers are."""
    tensors = {key: value.contiguous() for key, value in network.state_dict().items()}
    return safetensors.torch.save(tensors, metadata={LAYERS: layers_text(network)})


def network_of_state_dict(
    tensors: Mapping[str, Tensor], plan: Blueprint, *, ordered: bool
) -> Network:
    """The network of a plan with a state dict's tensors.

    ``ordered``: the tensors stand in the order of the layers (safetensors sorts them by name).
    Raises ModelError (architecture_mismatch, unsupported_dtype, non_finite_weights).
    """
    groups = _without_normalization(_groups(tensors), plan)
    if not ordered:
        groups = dict(sorted(groups.items(), key=lambda item: _natural(item[0])))
    wanted = {
        node.name: plan.skeleton.layer(node.name).kind
        for node in plan.skeleton.nodes
        if plan.skeleton.layer(node.name).kind in _NAMES
    }
    pairs = _by_name(groups, wanted, plan) or _by_order(groups, wanted, plan, ordered=ordered)
    parameters: dict[str, Tensor] = {}
    for node, prefix in pairs.items():
        for key, tensor in _fitted(groups[prefix], prefix, node, wanted[node], plan).items():
            parameters[f"layers.{node}.{key}"] = tensor
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
    return network


def _state_dict(content: Any) -> dict[str, Tensor]:
    """The state dict inside what a file holds, out of its wrapper."""
    if isinstance(content, dict):
        wrapped = [key for key in _WRAPPERS if key in content]
        if len(wrapped) == 1:
            beside = [str(k)[:60] for k in content if k not in wrapped and k not in _BESIDE]
            if beside:
                _mismatch(f"{beside[:8]} stand beside {wrapped[0]!r}: which is the network?")
            content = content[wrapped[0]]
    if isinstance(content, list):
        if len(content) != 1:
            _mismatch(
                f"the checkpoint is a cascade of {len(content)} networks",
                hint="upload each stage on its own",
            )
        (content,) = content
    if not isinstance(content, dict) or not content:
        raise ModelError("the checkpoint holds no state dict", code="invalid_checkpoint")
    others = [str(k)[:60] for k, v in content.items() if not isinstance(v, Tensor)]
    if others or not all(isinstance(key, str) for key in content):
        raise ModelError(
            f"the state dict holds other things than tensors: {others[:8]}",
            code="invalid_checkpoint",
        )
    return content


def _groups(tensors: Mapping[str, Tensor]) -> dict[str, Group]:
    """Tensors by module, without what is ignored by name."""
    groups: dict[str, Group] = {}
    for key, tensor in tensors.items():
        prefix, _, name = key.rpartition(".")
        if name in IGNORED_TENSORS:
            continue
        if tensor.dtype != torch.float32:
            raise ModelError(
                f"the tensor {key!r} is {str(tensor.dtype).removeprefix('torch.')}",
                code="unsupported_dtype",
                hint="only float32 networks are certified: convert the weights to float32",
            )
        groups.setdefault(prefix, {})[name] = tensor
    return groups


def _without_normalization(groups: dict[str, Group], plan: Blueprint) -> dict[str, Group]:
    """Drop the normalisation that our own state dicts hold, once it is the plan's."""
    stored = [prefix for prefix, group in groups.items() if group.keys() == {"mean", "std"}]
    if not stored:
        return groups
    given = list(plan.given.values())
    found = [groups[prefix][key] for prefix in stored for key in ("mean", "std")]
    same = len(given) == len(found)
    if not same or not all(torch.equal(a, b) for a, b in zip(given, found, strict=True)):
        _mismatch(f"the normalisation in {stored} is not the architecture's")
    return {prefix: group for prefix, group in groups.items() if prefix not in stored}


def _kind(prefix: str, group: Group) -> str:
    """Which kind of layer a module is, by its tensors; empty when it is none of ours.

    Thresholds that do not tell upper from lower are told by the name (as we write it).
    """
    if group.keys() == {"value"}:
        return next((kind for kind in (AtMost.kind, AtLeast.kind) if kind in prefix), "")
    if {"running_mean", "mean"} & group.keys():
        return BatchNorm.kind
    if {"theta", "threshold"} & group.keys():
        return ReLUTheta.kind
    rank = group["weight"].dim() if "weight" in group else 0
    return {4: Conv2d.kind, 2: Linear.kind}.get(rank, "")


def _by_name(
    groups: dict[str, Group], wanted: dict[str, str], plan: Blueprint
) -> dict[str, str] | None:
    """Modules by the layers' names, when every layer with weights has one that is a module's."""
    pairs: dict[str, str] = {}
    for node in wanted:
        name = plan.names.get(node)
        found = [p for p in groups if name and (p == name or p.endswith("." + name))]
        if len(found) != 1:
            return None
        pairs[node] = found[0]
    if set(groups) != set(pairs.values()):
        return None
    return pairs


def _by_order(
    groups: dict[str, Group], wanted: dict[str, str], plan: Blueprint, *, ordered: bool
) -> dict[str, str]:
    """Modules in order, kind by kind."""
    unknown = [prefix for prefix, group in groups.items() if not _kind(prefix, group)]
    if unknown:
        names = [f"{prefix}.{key}" for prefix in unknown for key in groups[prefix]]
        _mismatch(f"the tensors {names[:8]} belong to no layer of the architecture")
    pairs: dict[str, str] = {}
    for kind in _NAMES:
        nodes = [node for node, its_kind in wanted.items() if its_kind == kind]
        modules = [prefix for prefix, group in groups.items() if _kind(prefix, group) == kind]
        if len(nodes) != len(modules):
            _mismatch(
                f"the architecture has {len(nodes)} {kind} layers with weights, "
                f"the checkpoint {len(modules)}: {_shapes(groups, modules)}"
            )
        if not ordered and len({re.sub(r"\d+", "#", prefix) for prefix in modules}) > 1:
            modules = _by_shape(groups, modules, [_first_shape(plan, node) for node in nodes])
        pairs.update(zip(nodes, modules, strict=True))
    return pairs


def _first_shape(plan: Blueprint, node: str) -> tuple[int, ...]:
    return tuple(next(iter(plan.skeleton.layer(node).state_dict().values())).shape)


def _by_shape(
    groups: dict[str, Group], modules: list[str], shapes: list[tuple[int, ...]]
) -> list[str]:
    """Modules whose names say nothing of their order, in the order of the layers' shapes."""
    left: dict[tuple[int, ...], list[str]] = {}
    for prefix in modules:
        named = (groups[prefix].get(name) for name in ("weight", "theta", "threshold", "value"))
        weight = next((tensor for tensor in named if tensor is not None), None)
        left.setdefault(() if weight is None else tuple(weight.shape), []).append(prefix)
    for same in left.values():
        if len({re.sub(r"\d+", "#", prefix) for prefix in same}) > 1:
            _mismatch(
                f"the modules {same[:6]} have equal shapes and safetensors keeps no order",
                hint='give every layer with weights its module\'s "name" in a layer list',
            )
    lacking = [shape for shape in shapes if len(left.get(shape, [])) < shapes.count(shape)]
    if lacking:
        _mismatch(
            f"the architecture has a weight of shape {lacking[0]}, the checkpoint "
            f"{_shapes(groups, modules)}"
        )
    return [left[shape].pop(0) for shape in shapes]


def _fitted(group: Group, prefix: str, node: str, kind: str, plan: Blueprint) -> dict[str, Tensor]:
    """A module's tensors under our names, every shape as the layer wants it."""
    expected = plan.skeleton.layer(node).state_dict()
    fitted: dict[str, Tensor] = {}
    left = dict(group)
    for name, shape in ((name, tuple(tensor.shape)) for name, tensor in expected.items()):
        given = next((left.pop(alias) for alias in _NAMES[kind][name] if alias in left), None)
        if given is None:
            _mismatch(f"{prefix or 'the checkpoint'} has no {name!r}, which {node} needs: {shape}")
        elif tuple(given.shape) != shape:
            _mismatch(
                f"{prefix}.{name} has shape {tuple(given.shape)}, the architecture's {node} {shape}"
            )
        else:
            fitted[name] = given.detach().contiguous()
    if left:
        _mismatch(f"{prefix} has {sorted(left)}, which {node} does not take")
    return fitted


def _natural(name: str) -> list[tuple[int, int, str]]:
    return [(0, int(p), "") if p.isdigit() else (1, 0, p) for p in re.split(r"(\d+)", name) if p]


def _shapes(groups: dict[str, Group], modules: list[str]) -> str:
    return ", ".join(
        f"{prefix} {tuple(next(iter(groups[prefix].values())).shape)}" for prefix in modules[:12]
    )


def _mismatch(message: str, hint: str = "") -> NoReturn:
    raise ModelError(
        message,
        code="architecture_mismatch",
        hint=hint or "name the architecture the checkpoint was trained with, or give a layer list",
    )
