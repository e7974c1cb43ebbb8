"""Generates characters in C++: all layers, output layer and draw for a block of characters in one call.

N parallel streams    L layers    H hidden units    G gates    V symbols
"""

from __future__ import annotations

import ctypes

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from charlm.model.cells import State
from charlm.model.layers import Network
from charlm.model.native import library
from charlm.model.native.interface import KINDS, Generation, address, addresses, is_bf16
from charlm.model.native.layer import SLOTS
from charlm.model.native.linear import pack, rounded_up
from charlm.model.native.weights import table_of, weights_of
from charlm.threads import kernel_threads

_ALONE = 1 << 22
"""Up to this many bytes of weights, one thread generates a single stream. A character takes microseconds, and threads that
synchronise for each character lose more than they gain on a busy machine."""


class NativeSampler:
    """Continues N streams after a prompt.

    Args:
        network: on a CPU, without attention.
        logits: ``(N, V)`` for the next character.
        state: each ``(L, N, H)``.
        temperature, top_k, top_p: see :class:`charlm.sampling.SamplingParams`.
        banned: ids that are never drawn.
        dtype: type of the operands of products.
    """

    def __init__(
        self,
        network: Network,
        logits: Tensor,
        state: State,
        temperature: float,
        top_k: int,
        top_p: float,
        banned: frozenset[int],
        dtype: torch.dtype = torch.float32,
    ) -> None:
        layers = list(network.layers)
        N, V = logits.shape
        missing = rounded_up(network.section.hidden) - network.section.hidden
        H, padded = network.section.hidden + missing, rounded_up(V)
        entry = layers[0].entry
        which = entry.kernels["native"]
        with torch.no_grad():
            weights = [weights_of(layer, dtype, training=False) for layer in layers]
            inputs = [
                pack(F.pad(w.weight_ih, (0, missing)), dtype, gates=len(entry.gates), backward=False) for w in weights[1:]
            ]
            output = pack(F.pad(network.output_matrix(), (0, missing)), dtype, backward=False)
            self._logits = F.pad(logits.float(), (0, padded - V)).contiguous()
            bias = F.pad(network.output_bias, (0, padded - V))
            table = table_of(layers[0], weights[0], network.embedding)
            self._h = torch.zeros(len(layers) * 2 + 1 + SLOTS[which], N, H, dtype=dtype)  # and r∘h and gates of a step
            self._h[: 2 * len(layers) : 2] = F.pad(state[0], (0, missing))
            self._sum = torch.zeros(N, H, dtype=dtype)
            self._carried = F.pad(state[-1].float(), (0, missing)).contiguous()
        self._nonfinite = np.zeros(N, dtype=np.uint8)
        forbidden = np.zeros(V, dtype=np.uint8)
        forbidden[list(banned)] = 1

        recurrent = addresses([w.packed.forward for w in weights if w.packed is not None])
        below = addresses([None, *(packed.forward for packed in inputs)])
        biases = addresses([w.bias for w in weights])
        b_n = addresses([w.b_n for w in weights])
        peepholes = addresses([w.peepholes for w in weights])
        pointers = (recurrent, below, biases, b_n, peepholes)
        self._keep = (weights, inputs, output, bias, table, forbidden, *pointers)  # C++ reads this memory
        matrices = [*(w.packed for w in weights if w.packed is not None), *inputs]
        read_per_step = sum(matrix.forward.numel() for matrix in matrices) * dtype.itemsize
        self._is_alone = N == 1 and read_per_step <= _ALONE
        self._call = Generation(
            bf16=is_bf16(dtype), kind=KINDS[which], layers=len(layers), V=padded, H=H, N=N, symbols=V,
            residual=network.section.residual,
            weights=ctypes.addressof(recurrent), weights_ih=ctypes.addressof(below), bias=ctypes.addressof(biases),
            b_n=ctypes.addressof(b_n), peepholes=ctypes.addressof(peepholes), table=address(table),
            output=address(output.forward), output_bias=address(bias), h=address(self._h), sum=address(self._sum),
            carried=address(self._carried), logits=address(self._logits),
            temperature=temperature, top_p=top_p, top_k=top_k, banned=forbidden.ctypes.data,
            nonfinite=self._nonfinite.ctypes.data,
        )  # fmt: skip

    @property
    def is_nonfinite(self) -> bool:
        """Whether a logit was NaN or infinite; the characters drawn are then invalid."""
        return bool(self._nonfinite.any())

    def draw(self, uniforms: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
        """Draw the next characters.

        Args:
            uniforms: ``(count, N)`` numbers in [0, 1), one for each draw.

        Returns:
            Their ids, ``(count, N)``.
        """
        uniforms = np.ascontiguousarray(uniforms, dtype=np.float64)
        drawn = np.empty(uniforms.shape, dtype=np.int64)
        self._call.threads = 1 if self._is_alone else kernel_threads()
        self._call.count = len(uniforms)
        self._call.uniforms, self._call.drawn = uniforms.ctypes.data, drawn.ctypes.data
        library.current().charlm_generate(ctypes.byref(self._call))
        return drawn
