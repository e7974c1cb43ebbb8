"""A plan: forward pass, loss and all gradients of a training step in one call of C++ (``source/plan.h``).

The plan is made once for a model. Each call writes the gradient of every weight into its ``grad``. The autograd functions of
this package compute the same, layer by layer, for models that the plan does not cover.

    T time steps    B streams    L layers    H hidden units    V symbols
"""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Sequence

import torch
from torch import Tensor

from charlm.cells import entry_of
from charlm.model.cells import State
from charlm.model.dropout import Dropout, threshold
from charlm.model.layers import Network, RecurrentLayer
from charlm.model.native import library
from charlm.model.native.interface import KINDS, PlanBatch, PlanParameters, PlanShape, address
from charlm.threads import kernel_threads


class NativePlan:
    """A training step of one model.

    Args:
        network: fp32 weights on the CPU, without attention. The ``grad`` of each is a contiguous tensor of its shape.
        bf16: whether the operands of products are bf16.
    """

    def __init__(self, network: Network, bf16: bool) -> None:
        section = network.section
        entry = entry_of(section)
        self._network, self._section, self._entry = network, section, entry
        self._shape = PlanShape(
            kind=KINDS[entry.kernels["native"]], bf16=int(bf16), layers=section.layers, V=len(network.output_bias),
            D=0 if network.embedding is None else network.embedding.shape[1], H=section.hidden, tied=int(section.tied),
            residual=int(section.residual), locked=int(section.locked_dropout),
            drop_embedding=0 if network.embedding is None else threshold(section.input_dropout),
            drop_outputs=threshold(section.dropout), drop_recurrent=threshold(section.weight_drop),
        )  # fmt: skip
        self._weights: list[Tensor] = list(network.parameters())
        self._places: list[int] = []
        """Addresses of the weights that the call holds."""
        self._keys = (ctypes.c_uint64 * (2 * section.layers))()
        keys = ctypes.addressof(self._keys)
        self._call = PlanBatch(key_outputs=keys, key_recurrent=keys + 8 * section.layers)
        functions = library.current()
        functions.charlm_plan_new(ctypes.byref(self._shape), ctypes.byref(self._call))
        self._run = functions.charlm_plan_run
        weakref.finalize(self, functions.charlm_plan_delete, ctypes.byref(self._call))

    def __call__(
        self, inputs: Tensor, targets: Tensor, factor: float, state: State, dropout: Dropout | None
    ) -> tuple[float, State]:
        """See :class:`charlm.model.engines.StepPlan`.

        Raises:
            IndexError: an id is not below V.
            ValueError: there are no characters.
        """
        if not inputs.numel():
            raise ValueError("a training step needs at least one character")
        call = self._call
        places = [weight.data_ptr() for weight in self._weights]
        if places != self._places:
            self._point()
            self._places = places
        inputs, targets = inputs.contiguous(), targets.contiguous()
        state = tuple(part.contiguous() for part in state)
        after = tuple(torch.empty_like(part) for part in state)
        call.threads, call.factor = kernel_threads(), factor
        call.T, call.B = len(inputs), inputs.shape[1]
        call.ids, call.targets = address(inputs), address(targets)
        call.h, call.h_after = address(state[0]), address(after[0])
        call.c, call.c_after = address(state[-1]), address(after[-1])
        call.drops = dropout is not None
        if dropout is not None:
            call.first_stream, call.all_streams = dropout.first, dropout.batch or call.B
            self._set_keys(dropout)
        if not self._run(ctypes.byref(call)):
            raise IndexError(f"id {call.bad_id}, expected 0 to {self._shape.V - 1}")
        return call.nats, after

    def _set_keys(self, dropout: Dropout) -> None:
        shape, layers = self._shape, self._section.layers
        if shape.drop_embedding:
            self._call.key_embedding = dropout.key("embedding")
        for layer in range(layers):
            if shape.drop_outputs:
                self._keys[layer] = dropout.key("outputs", layer)
            if shape.drop_recurrent:
                self._keys[layers + layer] = dropout.key("recurrent", layer)

    def _point(self) -> None:
        """Write the addresses of all weights and gradients into the call."""
        network, call = self._network, self._call
        self._parts = [_addresses(network.layers, gradients) for gradients in (False, True)]
        call.weights, call.gradients = (ctypes.addressof(part) for part in self._parts)
        output = None if self._section.tied else network.output_matrix()
        call.embedding, call.d_embedding = address(network.embedding), _gradient(network.embedding)
        call.output_weight, call.d_output_weight = address(output), _gradient(output)
        call.output_bias, call.d_output_bias = address(network.output_bias), _gradient(network.output_bias)


def _addresses(layers: Sequence[RecurrentLayer], gradients: bool) -> ctypes.Array[PlanParameters]:
    which = _gradient if gradients else address
    names = [field[0] for field in PlanParameters._fields_]
    stored = {"peepholes": "weight_peephole"}
    return (PlanParameters * len(layers))(
        *(PlanParameters(*(which(getattr(layer, stored.get(name, name), None)) for name in names)) for layer in layers)
    )


def _gradient(weight: Tensor | None) -> int | None:
    return None if weight is None else address(weight.grad)
