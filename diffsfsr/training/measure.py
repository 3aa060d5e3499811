"""What one call of a network costs, found without running it: torch goes through its motions on tensors that have no memory.

Counted as a GPU would have it, on any machine: attention is fused, and under a half precision normalisation is float32, as CUDA's
autocast makes it (torch, "CUDA Ops that can autocast to float32").
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

M = TypeVar("M", bound=nn.Module)

_ATEN = torch.ops.aten
_FORMULAS = flop_registry | {  # torch counts every fused attention but the CPU's, which stands in for the GPU's here
    _ATEN._scaled_dot_product_flash_attention_for_cpu: flop_registry[_ATEN._scaled_dot_product_flash_attention],
    _ATEN._scaled_dot_product_flash_attention_for_cpu_backward: flop_registry[_ATEN._scaled_dot_product_flash_attention_backward],
}


@dataclass(frozen=True)
class Work:
    """One call on a batch and its way back. FLOP count 2 per multiply-add, of products and convolutions alone."""

    forward: float  # FLOP per item
    backward: float  # FLOP per item
    fixed: int  # bytes kept until the way back, however many items: the weights' copies in half precision
    kept: float  # bytes an item keeps until its way back
    peak: float  # bytes an item needs while on its way back, `kept` included

    def recomputed(self) -> Work:
        """The same where only its inputs are kept and its way back begins with another forward pass."""
        return replace(self, backward=self.backward + self.forward, kept=0.0)


class Ledger(TorchDispatchMode):
    """FLOP and bytes of what runs under it. A storage counts once, from its making until nothing holds it; `known` do not count."""

    def __init__(self, known: Iterable[Tensor]) -> None:
        super().__init__()
        self.flop, self.live, self.peak, self.copies = 0.0, 0, 0, 0  # `copies`: those live bytes that are weights in another precision
        self._known = {_storage(t)._cdata for t in known}
        self._counted: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        if formula := _FORMULAS.get(func._overloadpacket):
            self.flop += formula(*args, **(kwargs or {}), out_val=made)
        copied = func._overloadpacket is _ATEN._to_copy and _storage(args[0])._cdata in self._known
        for tensor in tree_leaves(made):
            if isinstance(tensor, Tensor):
                self._count(_storage(tensor), copied)
        return made

    def _count(self, storage: torch.UntypedStorage, copied: bool) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._counted or key in self._known:
            return
        self._counted.add(key)
        weakref.finalize(storage, self._forget, key, size, copied)
        self._grow(size, copied)

    def _forget(self, key: int, size: int, copied: bool) -> None:
        self._counted.discard(key)
        self._grow(-size, copied)

    def _grow(self, size: int, copied: bool) -> None:
        self.live += size
        self.copies += size if copied else 0
        self.peak = max(self.peak, self.live)


def _storage(tensor: Tensor) -> torch.UntypedStorage:
    return tensor.untyped_storage()


def weightless(net: M) -> M:
    """The same module, its parameters and buffers replaced by tensors without memory, of the FakeTensorMode that this is called under."""
    for module in net.modules():
        held: tuple[dict[str, Any], ...] = (module._parameters, module._buffers)
        for tensors in held:
            for name, value in tensors.items():
                if value is not None:
                    empty = torch.empty(value.shape, dtype=value.dtype)
                    tensors[name] = nn.Parameter(empty, value.requires_grad) if isinstance(value, nn.Parameter) else empty
        if isinstance(module, nn.GroupNorm | nn.LayerNorm):
            module.register_forward_pre_hook(_as_cuda_does)
    return net


def _as_cuda_does(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
    return tuple(x.float() for x in inputs) if torch.is_autocast_enabled("cpu") else None


def measure(net: nn.Module, call: Callable[[], Tensor], batch: int, half: torch.dtype | None = None) -> Work:
    """The work of `call` (a forward pass of `net` on `batch` items, without arguments) and of the way back from its result.

    A gradient of a parameter is given up as soon as it is there: where it is kept is the optimiser's affair. Works on real
    tensors as well as under a FakeTensorMode.
    """
    handles = [p.register_post_accumulate_grad_hook(_drop_grad) for p in net.parameters() if p.requires_grad]
    ledger = Ledger([*net.parameters(), *net.buffers()])
    with ledger:
        with autocast(half):
            made = call()
        forward, kept, fixed = ledger.flop, ledger.live, ledger.copies
        made.sum().backward()
    for handle in handles:
        handle.remove()
    each = (ledger.flop - forward, kept - fixed, ledger.peak - fixed)
    return Work(forward / batch, each[0] / batch, fixed, each[1] / batch, each[2] / batch)


def _drop_grad(p: Tensor) -> None:
    p.grad = None


def autocast(half: torch.dtype | None) -> AbstractContextManager[Any]:
    return torch.autocast("cpu", half) if half else nullcontext()


def forward_flop(call: Callable[[], Any]) -> float:
    """FLOP of a forward pass alone."""
    with torch.no_grad(), Ledger(()) as ledger:
        call()
    return ledger.flop
