"""The structures of the C interface, with the same fields as in ``source/*.h``: 64-bit integers, doubles, and addresses."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import torch
from torch import Tensor

_N, _D, _P = ctypes.c_int64, ctypes.c_double, ctypes.c_void_p

KINDS = {"rnn_tanh": 0, "rnn_relu": 1, "lstm": 2, "gru": 3, "gru_reset_before": 4, "lstm_peephole": 5, "lstm_coupled": 6}
"""``enum Kind`` of ``layer.h``."""


class Layer(ctypes.Structure):
    """A recurrent layer over T steps (``layer.h``)."""

    _fields_ = [
        ("kind", _N), ("bf16", _N), ("threads", _N), ("rows_split", _N),
        ("T", _N), ("B", _N), ("H", _N),
        ("weights", _P), ("b_n", _P), ("peepholes", _P), ("x", _P), ("ids", _P),
        ("h", _P), ("carried", _P), ("carried_step", _N), ("kept", _P), ("kept_step", _N), ("rh", _P), ("rh_step", _N),
        ("d_outputs", _P), ("dh", _P), ("dc", _P),
    ]  # fmt: skip


class Packing(ctypes.Structure):
    """Packing a matrix for products (``linear.h``)."""

    _fields_ = [
        ("bf16", _N), ("threads", _N), ("matrix", _P), ("rows", _N), ("columns", _N), ("gates", _N),
        ("transposed", _P), ("plain", _P),
    ]  # fmt: skip


class Linear(ctypes.Structure):
    """A linear layer (``linear.h``)."""

    _fields_ = [
        ("bf16", _N), ("threads", _N), ("rows", _N), ("K", _N), ("N", _N), ("a", _P), ("a_step", _N), ("gap_at", _N),
        ("gap", _N), ("weights", _P), ("bias", _P), ("added", _P), ("out_is_float", _N), ("out", _P),
    ]  # fmt: skip


class WeightGradient(ctypes.Structure):
    """The gradient of the weights of a linear layer (``linear.h``)."""

    _fields_ = [
        ("bf16", _N), ("threads", _N), ("K", _N), ("M", _N), ("N", _N), ("rows", _N), ("a_is_float", _N), ("b_is_float", _N),
        ("a", _P), ("a_step", _N), ("b", _P), ("b_step", _N), ("packed", _P), ("depth", _N), ("out", _P), ("sums", _P),
    ]  # fmt: skip


class SumById(ctypes.Structure):
    """The gradient of the rows of a table (``layer.h``)."""

    _fields_ = [
        ("bf16", _N), ("threads", _N), ("d", _P), ("ids", _P), ("N", _N), ("d_step", _N), ("H", _N), ("gates", _N),
        ("slots", _P), ("sums", _P),
    ]  # fmt: skip


class PeepholeGradient(ctypes.Structure):
    """The gradient of the peepholes (``layer.h``)."""

    _fields_ = [
        ("bf16", _N), ("threads", _N), ("T", _N), ("B", _N), ("H", _N), ("d", _P), ("c", _P), ("sums", _P),
    ]  # fmt: skip


class CrossEntropy(ctypes.Structure):
    """Output layer and loss (``loss.h``)."""

    _fields_ = [
        ("bf16", _N), ("threads", _N), ("N", _N), ("H", _N), ("V", _N), ("V_padded", _N),
        ("features", _P), ("weights", _P), ("weights_back", _P), ("bias", _P), ("targets", _P),
        ("factor", _D), ("nats", _P), ("d_logits", _P), ("d_features", _P), ("d_bias", _P),
    ]  # fmt: skip


class Dropping(ctypes.Structure):
    """Dropout (``dropout.h``)."""

    _fields_ = [
        ("bf16", _N), ("threads", _N), ("count", _N), ("row", _N), ("stride", _N), ("offset", _N),
        ("key", ctypes.c_uint64), ("threshold", _N), ("scale", _D), ("values", _P), ("out", _P),
    ]  # fmt: skip


class Generation(ctypes.Structure):
    """Generating text (``sampling.h``)."""

    _fields_ = [
        ("bf16", _N), ("threads", _N), ("kind", _N), ("layers", _N), ("V", _N), ("H", _N), ("N", _N),
        ("symbols", _N), ("count", _N), ("residual", _N),
        ("weights", _P), ("weights_ih", _P), ("bias", _P), ("b_n", _P), ("peepholes", _P), ("table", _P),
        ("output", _P), ("output_bias", _P), ("h", _P), ("sum", _P), ("carried", _P), ("logits", _P),
        ("temperature", _D), ("top_p", _D), ("top_k", _N), ("banned", _P), ("uniforms", _P), ("drawn", _P), ("nonfinite", _P),
    ]  # fmt: skip


class PlanShape(ctypes.Structure):
    """What a plan of a training step is made for (``plan.h``)."""

    _fields_ = [
        ("kind", _N), ("bf16", _N), ("layers", _N), ("V", _N), ("D", _N), ("H", _N), ("tied", _N), ("residual", _N),
        ("locked", _N), ("drop_embedding", _N), ("drop_outputs", _N), ("drop_recurrent", _N),
    ]  # fmt: skip


class PlanParameters(ctypes.Structure):
    """The parameters of a layer, or their gradients (``plan.h``)."""

    _fields_ = [("weight_ih", _P), ("weight_hh", _P), ("bias_ih", _P), ("bias_hh", _P), ("peepholes", _P)]


class PlanBatch(ctypes.Structure):
    """One training step (``plan.h``)."""

    _fields_ = [
        ("plan", _P), ("threads", _N), ("T", _N), ("B", _N), ("drops", _N), ("first_stream", _N), ("all_streams", _N),
        ("ids", _P), ("targets", _P), ("factor", _D), ("weights", _P), ("gradients", _P), ("embedding", _P),
        ("output_weight", _P), ("output_bias", _P), ("d_embedding", _P), ("d_output_weight", _P), ("d_output_bias", _P),
        ("h", _P), ("c", _P), ("h_after", _P), ("c_after", _P), ("key_outputs", _P), ("key_recurrent", _P),
        ("key_embedding", ctypes.c_uint64), ("nats", _D), ("bad_id", _N),
    ]  # fmt: skip


class Update(ctypes.Structure):
    """An optimizer's step (``optimizer.h``)."""

    _fields_ = [
        ("rule", _N), ("threads", _N), ("count", _N), ("sizes", _P), ("weights", _P), ("gradients", _P), ("first", _P),
        ("second", _P), ("decay", _P), ("factor", _D), ("rate", _D), ("momentum", _D), ("beta1", _D), ("beta2", _D),
        ("epsilon", _D), ("step", _N), ("norm", _D),
    ]  # fmt: skip


RULES = {torch.optim.SGD: 0, torch.optim.Adam: 1, torch.optim.AdamW: 2, torch.optim.RMSprop: 3}
"""``enum Rule`` of ``optimizer.h``."""

STRUCTURES = (
    Layer, Packing, Linear, WeightGradient, SumById, PeepholeGradient, CrossEntropy, Dropping, Generation, Update, PlanShape,
    PlanParameters, PlanBatch,
)  # fmt: skip
"""All structures. A library whose structures have other sizes is refused (:mod:`charlm.model.native.library`)."""


def addresses(tensors: Sequence[Tensor | None]) -> ctypes.Array[ctypes.c_void_p]:
    """The addresses of tensors as a C array. The caller keeps it alive while C++ reads it."""
    return (ctypes.c_void_p * len(tensors))(*(address(tensor) for tensor in tensors))


def address(tensor: Tensor | None) -> int | None:
    """The address of a contiguous tensor; ``None`` becomes a null pointer."""
    if tensor is None:
        return None
    assert tensor.is_contiguous()
    return tensor.data_ptr()


def is_bf16(dtype: torch.dtype) -> int:
    """1 for bf16 operands, 0 for float."""
    return int(dtype == torch.bfloat16)
