"""Runs a recurrent layer in C++: all T steps in one call, and backpropagation through time in another.

Memory kept for the backward pass, in bytes per character and layer, with s = 4 (fp32) or 2 (bf16) bytes:

    rnn                  2·H·s              h, d
    gru                  5·H·s              h; r, z, n and W_n·h, replaced by their gradients
    gru, reset before    5·H·s              h, r∘h; r, z, n
    lstm                 5·H·s + 4·H        h; i, f, g, o; and c in fp32; the same with peepholes
    lstm, coupled        4·H·s + 4·H        h; f, g, o; and c in fp32

A plan of a training step owns it (``source/plan.h``); here it comes from the activation memory pool. The next training step
reuses it. Layers above the first also hold the products of their input, G·H·s. H is rounded up to a multiple of 32: the extra
units are padding and stay zero.

    T time steps    B streams    H hidden units    G gates    V symbols
"""

from __future__ import annotations

import ctypes
from typing import Any

import torch
from torch import Tensor

from charlm.cells import CELLS
from charlm.model.native import library
from charlm.model.native.interface import KINDS, Layer, PeepholeGradient, SumById, address, is_bf16
from charlm.model.native.linear import Packed, pack, rounded_up, weight_gradient
from charlm.model.native.memory import POOL
from charlm.threads import kernel_threads

GATES = {entry.kernels["native"]: len(entry.gates) for entry in CELLS if "native" in entry.kernels}
SLOTS = GATES | {"gru": 4}  # what a step keeps of the gates: the GRU also W_n·h
_WITH_C = {entry.kernels["native"] for entry in CELLS if "native" in entry.kernels and "c" in entry.state}
_INPUT_SLOTS = {"gru": (0, 1, 3)}  # in other cells the input and hidden side share their gradients


def bytes_kept(kind: str, H: int, layers: int, V: int, size: int) -> int:
    """Bytes per character that a training step keeps: the formula at the top of this module, plus the output layer.

    Args:
        size: bytes of an operand, 4 (fp32) or 2 (bf16).
    """
    H, G = rounded_up(H), GATES[kind]
    numbers = (1 + SLOTS[kind] + (kind == "gru_reset_before")) * H
    recurrent = layers * (numbers * size + (4 * H if kind in _WITH_C else 0))
    inputs = (layers - 1) * G * H * size
    return recurrent + inputs + (rounded_up(V) + H) * size


class Recurrence(torch.autograd.Function):
    """h and c of all steps from the inputs of the gates (``run_layer`` in ``layer.h``)."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        ids: Tensor | None,
        weight_hh: Tensor,
        b_n: Tensor | None,
        peepholes: Tensor | None,
        h: Tensor,
        c: Tensor | None,
        kind: str,
        dtype: torch.dtype,
        packed: Packed | None,
        training: bool,
        shape: tuple[int, int],
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Outputs ``(T, B, H)``, the last h and c."""
        T, B = shape
        H, G, S = weight_hh.shape[1], GATES[kind], SLOTS[kind]
        if packed is None:
            packed = pack(weight_hh, dtype, gates=G, backward=training)
        steps = T if training else 1
        outputs = POOL.take((T + 1, B, H), dtype)
        outputs[0] = h
        has_carried = not kind.startswith("rnn")
        keeps_carried = training and kind in _WITH_C
        carried = POOL.take((T + 1 if keeps_carried else 1, B, H), torch.float32) if has_carried else None
        if carried is not None:
            carried[0] = c if c is not None else h
        kept = POOL.take((steps, B, S * H), dtype)
        rh = POOL.take((steps, B, H), dtype) if kind == "gru_reset_before" else None
        call = Layer(
            kind=KINDS[kind], bf16=is_bf16(dtype), threads=kernel_threads(),
            T=T, B=B, H=H, weights=address(packed.forward), b_n=address(b_n), peepholes=address(peepholes),
            x=address(x), ids=address(ids), h=address(outputs),
            carried=address(carried), carried_step=B * H if keeps_carried else 0,
            kept=address(kept), kept_step=B * S * H if training else 0, rh=address(rh), rh_step=B * H if training else 0,
        )  # fmt: skip
        library.current().charlm_layer_forward(ctypes.byref(call))
        if training:
            ctx.kept = (outputs, carried, kept, rh, packed.backward, peepholes, ids, call)
            ctx.kind, ctx.x_shape = kind, x.shape
        last = carried[-1].clone() if carried is not None else None
        if kind in _WITH_C:
            return outputs[1:], outputs[-1].to(torch.float32, copy=True), last
        return outputs[1:], outputs[-1].to(torch.float32, copy=True) if last is None else last, None

    @staticmethod
    def backward(ctx: Any, d_outputs: Tensor | None, d_h: Tensor | None, d_c: Tensor | None) -> tuple[Tensor | None, ...]:
        """Gradients of x, weight_hh, b_n, peepholes, h and c."""
        outputs, carried, kept, rh, weights, peepholes, ids, call = ctx.kept  # keeps the memory of `call` alive
        ctx.kept = None
        kind, (T, B) = ctx.kind, kept.shape[:2]
        H, G, S = outputs.shape[2], GATES[kind], SLOTS[kind]
        dtype = outputs.dtype
        d_outputs = d_outputs.to(dtype).contiguous() if d_outputs is not None else None
        dh = torch.zeros(B, H) if d_h is None else d_h.float().clone(memory_format=torch.contiguous_format)
        dc = torch.zeros(B, H) if d_c is None else d_c.float().clone(memory_format=torch.contiguous_format)
        call.weights, call.d_outputs, call.dh, call.dc = address(weights), address(d_outputs), address(dh), address(dc)
        library.current().charlm_layer_backward(ctypes.byref(call))

        d = kept.view(T * B, S * H)  # the gates' gradients have replaced the gates
        before = outputs[:-1].view(T * B, H)
        if kind == "gru_reset_before":
            gates, _ = weight_gradient(d[:, : 2 * H], before, dtype)
            candidate, sums = weight_gradient(d[:, 2 * H :], rh.view(T * B, H), dtype)
            d_weight = torch.cat([gates, candidate])
        else:
            d_weight, sums = weight_gradient(d[:, : G * H], before, dtype, sums=kind == "gru")
        d_b_n = sums[2 * H :] if sums is not None else None
        d_peepholes = peephole_gradient(d, carried) if peepholes is not None else None
        slots = _INPUT_SLOTS.get(kind)
        if ids is not None:
            d_x = sum_by_id(d, ids, ctx.x_shape[0], H, slots or tuple(range(G)))
        elif slots is not None:
            d_x = d.view(T, B, S, H)[:, :, list(slots)].view(ctx.x_shape)
        else:
            d_x = d.view(ctx.x_shape)
        return d_x, None, d_weight, d_b_n, d_peepholes, dh, dc if kind in _WITH_C else None, None, None, None, None, None


def sum_by_id(d: Tensor, ids: Tensor, V: int, H: int, slots: tuple[int, ...]) -> Tensor:
    """For each id, sum the rows of d ``(N, S·H)`` at its positions, blocks ``slots`` only: ``(V, G·H)`` in fp32."""
    sums = torch.zeros(V, len(slots) * H)
    order = (ctypes.c_int64 * len(slots))(*slots)
    call = SumById(
        is_bf16(d.dtype), kernel_threads(), address(d), address(ids), ids.numel(), d.shape[1], H, len(slots),
        ctypes.addressof(order), address(sums),
    )  # fmt: skip
    library.current().charlm_sum_by_id(ctypes.byref(call))
    return sums


def peephole_gradient(d: Tensor, c: Tensor) -> Tensor:
    """The gradient of the peepholes ``(3·H,)`` in fp32, from d ``(T·B, 4·H)`` and c ``(T+1, B, H)`` of all steps."""
    steps, B, H = c.shape
    sums = torch.empty(3 * H)
    call = PeepholeGradient(is_bf16(d.dtype), kernel_threads(), steps - 1, B, H, address(d), address(c), address(sums))
    library.current().charlm_peephole_gradient(ctypes.byref(call))
    return sums
