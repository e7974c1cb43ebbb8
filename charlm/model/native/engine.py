"""The engine ``native``: C++ kernels for CPUs, in ``source/``. docs/backpropagation.md derives their gradients.

T time steps    B streams    D input width    H hidden units    G gates    V symbols
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from charlm.cells import entry_of
from charlm.config import ModelSection
from charlm.model.cells import State
from charlm.model.dropout import Key, Places, masked
from charlm.model.layers import Network, RecurrentLayer
from charlm.model.native import library, loss
from charlm.model.native.dropout import Drop
from charlm.model.native.layer import Recurrence, bytes_kept
from charlm.model.native.linear import rounded_up
from charlm.model.native.optimizer import NativeOptimizer
from charlm.model.native.plan import NativePlan
from charlm.model.native.sampling import NativeSampler
from charlm.model.native.weights import input_product, look_up, operand_type, weights_of


class NativeEngine:
    """Our own kernels, all T steps of a layer in one call: the fastest engine on a CPU."""

    name = "native"
    sampling_precisions: tuple[str, ...] = ("fp32", "bf16")
    samples_in_parallel = True
    fp32_reason: str | None = None

    def why_not(self, model: ModelSection, device: torch.device) -> str | None:
        """It needs a CPU, a kernel for the cell, and a library built for the CPU."""
        if device.type != "cpu":
            return "the native engine is for CPUs"
        entry = entry_of(model)
        return library.reason() if self.name in entry.kernels else f"the native engine has no kernel for the {entry.title}"

    def is_thread_invariant(self, model: ModelSection) -> bool:
        """See :class:`charlm.model.engines.Engine`: all sums except those of attention have a fixed order."""
        return model.attention == 0

    def run(
        self, layer: RecurrentLayer, inputs: Tensor, state: State, embedding: Tensor | None, weight_hh: Tensor | None = None
    ) -> tuple[Tensor, State]:
        """See :class:`charlm.model.engines.Engine`. Outputs have the type of the operands of products."""
        if layer.weight_hh.dtype != torch.float32:
            raise TypeError(f"the native engine's weights are fp32, not {layer.weight_hh.dtype}; use the reference engine")
        H = layer.weight_hh.shape[1]
        dtype, training = operand_type(), torch.is_grad_enabled()
        weights = weights_of(layer, dtype, training, weight_hh)
        if inputs.is_floating_point():
            x, ids = input_product(layer, weights, inputs, dtype, training), None
        else:
            x, ids = look_up(layer, weights, inputs.contiguous(), embedding, training)
        missing = weights.weight_hh.shape[1] - H
        h, c = (F.pad(part.float(), (0, missing)) if missing else part.float() for part in (state[0], state[-1]))
        outputs, *carried = Recurrence.apply(  # type: ignore[no-untyped-call]
            x.contiguous(), ids, weights.weight_hh, weights.b_n, weights.peepholes, h, c if len(state) == 2 else None,
            layer.entry.kernels[self.name], dtype, weights.packed, training, inputs.shape[:2],
        )  # fmt: skip
        if missing:
            outputs = outputs[..., :H]
        return outputs, tuple(part[:, :H].to(old.dtype) for part, old in zip(carried, state, strict=False))

    def cross_entropy(self, features: Tensor, weight: Tensor, bias: Tensor, targets: Tensor) -> Tensor:
        """See :class:`charlm.model.engines.Engine`."""
        return loss.cross_entropy(features, weight, bias, targets, operand_type())

    def nll(self, features: Tensor, weight: Tensor, bias: Tensor, targets: Tensor) -> Tensor:
        """See :class:`charlm.model.engines.Engine`."""
        return loss.nll(features, weight, bias, targets, operand_type())

    def plan(self, network: Network, precision: str) -> NativePlan | None:
        """See :class:`charlm.model.engines.Engine`: models with attention take the autograd functions."""
        return None if network.section.attention else NativePlan(network, precision == "bf16")

    def fused_optimizer(self, optimizer: torch.optim.Optimizer) -> NativeOptimizer | None:
        """See :class:`charlm.model.engines.Engine`: clipping and update in one pass, for the rules that are written in C++."""
        return NativeOptimizer(optimizer) if NativeOptimizer.implements(optimizer) else None

    def drop(self, values: Tensor, places: Places, key: Key, threshold: int) -> Tensor:
        """See :class:`charlm.model.engines.Engine`."""
        if values.dtype not in (torch.float32, torch.bfloat16) or isinstance(key, Tensor):
            return masked(values, places, key, threshold)
        dropped: Tensor = Drop.apply(values, places, key, threshold)  # type: ignore[no-untyped-call]
        return dropped

    def block_sampler(
        self,
        network: Network,
        logits: Tensor,
        state: State,
        temperature: float,
        top_k: int,
        top_p: float,
        banned: frozenset[int],
        dtype: torch.dtype,
    ) -> NativeSampler | None:
        """See :class:`charlm.model.engines.Engine`: models with attention are sampled step by step."""
        if network.section.attention:
            return None
        return NativeSampler(network, logits, state, temperature, top_k, top_p, banned, dtype)

    def kept_bytes(self, model: ModelSection, vocabulary_size: int, size: int) -> int:
        """See :class:`charlm.model.engines.Engine`: what a plan holds; see :func:`charlm.model.native.layer.bytes_kept`.

        Also each layer's output after dropout and residual connection (the autograd functions, which run models with
        attention, keep two more), and a second gradient between layers.
        """
        kept = bytes_kept(entry_of(model).kernels[self.name], model.hidden, model.layers, vocabulary_size, size)
        changed = model.layers if model.dropout else model.layers - 1 if model.residual else 0
        outputs = changed * (3 if model.attention else 1) + (model.layers > 1)
        return kept + outputs * rounded_up(model.hidden) * size
