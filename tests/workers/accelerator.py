"""An accelerator for machines that have none: a device of its own kind, computed by the CPU.

torch's Python backend for the PrivateUse1 device: tensors on it hold a CPU tensor, every operator
is run on that. As on a GPU, an operator that meets tensors of two devices fails (zero-dimensional
ones and indices apart), ``numpy`` and CPU generators are refused, and only ``to`` and ``cpu``
bring anything back. So a tensor left on the wrong device shows without a GPU. It stays for the
life of the process: use it in one of its own.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils import backend_registration

__all__ = ["DEVICE"]

NAME = "emulated"

#: Operators that may take tensors of two devices.
_MOVES = {"aten::_to_copy", "aten::copy_"}
_INDEXED = {"aten::index", "aten::index_put", "aten::index_put_", "aten::_index_put_impl_"}


class _Module(backend_registration._DummyBackendModule):
    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16]


class _Held(Tensor):
    """A tensor on the device; ``held`` is its CPU tensor."""

    held: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, held: Tensor) -> _Held:
        made: _Held = Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls,
            held.size(),
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            device=DEVICE,
        )
        made.held = held
        return made

    @classmethod
    def __torch_dispatch__(
        cls, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        return _run(function, *args, **(kwargs or {}))

    def tolist(self) -> Any:
        return self.held.tolist()

    def new_tensor(self, data: Any, *, dtype: Any = None, device: Any = None) -> Tensor:
        return torch.tensor(data, dtype=dtype or self.dtype).to(device or self.device)


def _run(operator: Any, *args: Any, **kwargs: Any) -> Any:
    """Run an operator on what its arguments hold; what it gives lies on the device."""
    name = operator._schema.name
    # What is indexed, and what is put there, must lie on the device; the indices need not.
    bound = (args[0], *args[2:]) if name in _INDEXED else (args, kwargs)
    for value in pytree.tree_leaves(bound):
        foreign = isinstance(value, Tensor) and not isinstance(value, _Held) and value.dim() > 0
        if foreign and name not in _MOVES:
            raise RuntimeError(f"{name}: tensors on {NAME} and on {value.device}")
    if kwargs.get("generator") is not None:
        raise RuntimeError(f"{name}: a CPU generator on {NAME}")
    plain_args, plain_kwargs = pytree.tree_map(_plain, (args, kwargs))
    result = operator(*plain_args, **plain_kwargs)
    target = kwargs.get("device")
    if name == "aten::_to_copy" and target is not None and torch.device(target).type == "cpu":
        return result
    written = {}
    for position, argument in enumerate(operator._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            given = position < len(args)
            plain = plain_args[position] if given else plain_kwargs.get(argument.name)
            written[id(plain)] = args[position] if given else kwargs.get(argument.name)

    def wrapped(value: Any) -> Any:
        if not isinstance(value, Tensor) or id(value) in written:
            return written.get(id(value), value)
        # A conjugate that is only noted stays unseen: torch looks for the note on the outside.
        return _Held(value.resolve_conj().resolve_neg())

    return pytree.tree_map(wrapped, result)


def _plain(value: Any) -> Any:
    if isinstance(value, torch.device):
        return torch.device("cpu")
    return value.held if isinstance(value, _Held) else value


def _tensor(
    data: Any, *, dtype: Any = None, device: Any = None, requires_grad: bool = False
) -> Any:
    """``torch.tensor``, which cannot make one on a device of Python."""
    made = _plain_tensor(data, dtype=dtype)
    return (made if device is None else made.to(device)).requires_grad_(requires_grad)


_plain_tensor, torch.tensor = torch.tensor, _tensor
backend_registration._setup_privateuseone_for_python_backend(NAME, backend_module=_Module())
DEVICE = torch.device(NAME, 0)
_library = torch.library.Library("_", "IMPL")
_library.fallback(_run, "PrivateUse1")
