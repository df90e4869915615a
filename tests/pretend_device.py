"""A pretend accelerator in Python alone, to hold without a GPU what one asks of code.

Values live on the CPU, but no operation takes tensors of both devices, CPU generators are refused, and each read by the
host (which would wait for an accelerator) is put down in `reads`. Its device is `pretend`.
"""

from typing import Any

import torch
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.backend_registration import _DummyBackendModule, _setup_privateuseone_for_python_backend


class Backend(_DummyBackendModule):  # type: ignore[misc]
    """What torch asks of a device's module."""

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        """Types of autocast."""
        return [torch.bfloat16, torch.float16]


_setup_privateuseone_for_python_backend("pretend", Backend())
READS = {"_local_scalar_dense", "nonzero", "_unique2", "equal", "masked_select"}
"""Operations whose result the host has to see."""
MOVES = ("copy_", "_to_copy", "_copy_from")
reads: list[str] = []
"""What the host has read so far."""


class OnDevice(torch.Tensor):
    """A tensor of the device; `held` is its value."""

    held: torch.Tensor

    @staticmethod
    def __new__(cls, value: torch.Tensor) -> "OnDevice":
        own = torch.Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls, value.shape, value.stride(), value.storage_offset(), dtype=value.dtype, device="pretend:0"
        )
        own.held = value
        return own  # type: ignore[no-any-return]

    def tolist(self) -> list[Any]:
        """A read."""
        reads.append("tolist")
        return self.held.tolist()

    def __repr__(self) -> str:  # type: ignore[override]
        return f"pretend {self.held!r}"

    @classmethod
    def __torch_dispatch__(cls, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return call(op, *args, **(kwargs or {}))


def refuse_mixtures(name: str, given: list[Any], tensors: list[torch.Tensor], device: Any) -> None:
    """What a real device refuses: tensors of two devices, but for numbers and for indices, and another's generator."""
    ours = [isinstance(tensor, OnDevice) for tensor in tensors]
    indexed = name.startswith(("index", "_index_put", "_unsafe_index")) and bool(ours) and ours[0]
    strangers = [tensor for tensor, own in zip(tensors, ours, strict=True) if not own and tensor.dim()]
    if any(ours) and strangers and not indexed and name not in MOVES:
        raise RuntimeError(f"Expected all tensors to be on the same device, but found pretend:0 and cpu (in {name})")
    if any(isinstance(value, torch.Generator) for value in given) and (any(ours) or device is not None):
        raise RuntimeError("Expected a 'pretend' device type for generator but found 'cpu'")


def call(op: Any, *args: Any, **kwargs: Any) -> Any:
    """An operation on the values held, whose results are on the device where its arguments are, or where it is told."""
    name, given = op._schema.name.split("::")[1], tree_leaves((args, kwargs))
    tensors = [value for value in given if isinstance(value, torch.Tensor)]
    ours = any(isinstance(tensor, OnDevice) for tensor in tensors)
    target = kwargs.pop("device", None)
    refuse_mixtures(name, given, tensors, target)
    leaves = name in MOVES and ours and target is not None and torch.device(target).type == "cpu"
    masked = name.startswith(("index", "_index_put")) and any(tensor.dtype == torch.bool for tensor in tensors[1:])
    if name in READS or masked or leaves:
        reads.append(name)

    values, named = tree_map(lambda value: value.held if isinstance(value, OnDevice) else value, (args, kwargs))
    found = op(*values, **named)
    if name == "copy_":
        return args[0]
    stays = ours if target is None else torch.device(target).type == "pretend"
    known = {id(tensor.held): tensor for tensor in tensors if isinstance(tensor, OnDevice)}
    if op._schema.is_mutable:  # transpose_, or an output that was resized
        for tensor in known.values():
            if tensor.shape != tensor.held.shape:
                tensor.data = OnDevice(tensor.held)

    def placed(value: Any) -> Any:
        if id(value) in known:
            return known[id(value)]
        return OnDevice(value) if stays and isinstance(value, torch.Tensor) else value

    return tree_map(placed, found)


def copy_from(source: torch.Tensor, target: Any, non_blocking: bool = False) -> Any:
    """A copy onto the device."""
    target.held.copy_(source.held if isinstance(source, OnDevice) else source)
    return target


def lstm_cell(inputs: Any, hidden: Any, state: Any, *biases: Any) -> tuple[Any, Any, Any]:
    """The fused cell that torch asks of every device but the CPU."""
    gates = inputs + hidden + sum(bias for bias in biases if bias is not None)
    enter, forget, candidate, out = gates.chunk(4, 1)
    after = forget.sigmoid() * state + enter.sigmoid() * candidate.tanh()
    return out.sigmoid() * after.tanh(), after, after


LIBRARIES = [torch.library.Library("_", "IMPL"), torch.library.Library("aten", "IMPL")]
"""They register as long as they live."""
LIBRARIES[0].fallback(lambda op, *args, **kwargs: call(op, *args, **kwargs), "PrivateUse1")
LIBRARIES[0].fallback(torch.library.fallthrough_kernel, "AutocastPrivateUse1")
LIBRARIES[1].impl("_copy_from", copy_from, "PrivateUse1")
LIBRARIES[1].impl("_thnn_fused_lstm_cell", lstm_cell, "AutogradPrivateUse1")
