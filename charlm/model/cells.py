"""The recurrent cells, each written once as its equations: one time step, for B streams at once.

Every faster engine is tested against these equations. Names are those of textbooks; the order of the gates is PyTorch's, so
weights move to ``torch.nn`` unchanged. Gates and parameters are declared in the cell's entry in :mod:`charlm.cells`. A cell's
gates are a separate function, which its step calls: ``charlm eval gates`` shows the values that the step uses.

    B streams    H hidden units    G gates (RNN 1, GRU 3, LSTM 4)

    x   (B, G·H)   the input's part of each gate, W_ih·input + b_ih, computed for all steps beforehand.
                   A cell whose entry has no weight_ih receives the input itself, (B, D)
    h   (B, H)     hidden state, the cell's output
    c   (B, H)     the LSTM's cell state
    W   (G·H, H)   recurrent weights W_hh, one block of rows per gate;   b  (G·H,)  their bias b_hh
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

State = tuple[Tensor, ...]
"""The state that a cell carries from step to step: ``(h,)``, or ``(h, c)`` for the LSTM."""

Step = Callable[..., State]
"""One time step: (x, state, then the entry's other parameters in order) → next state; its first part is the output."""

Gates = Callable[..., tuple[Tensor, ...]]
"""The gates and candidates of one time step after their activation, in the entry's order; arguments as of :data:`Step`."""


def rnn_tanh(x: Tensor, state: State, W: Tensor, b: Tensor) -> State:
    """Elman's network (1990): h′ = tanh(x + W·h + b).

    The gradient of h from k steps later is a product of k factors Wᵀ·diag(1 − h′²): it shrinks (or explodes)
    geometrically, so a plain RNN learns no long dependencies (Bengio et al. 1994).
    """
    (h,) = state
    return (torch.tanh(x + _product(h, W, b)),)


def rnn_relu(x: Tensor, state: State, W: Tensor, b: Tensor) -> State:
    """The same with max(0, ·) instead of tanh: no saturation, but no bound (Le et al. 2015)."""
    (h,) = state
    return (torch.relu(x + _product(h, W, b)),)


def lstm(x: Tensor, state: State, W: Tensor, b: Tensor) -> State:
    """Long short-term memory (Hochreiter & Schmidhuber 1997; forget gate: Gers et al. 2000). Gates i, f, g, o.

    i = σ(·)   f = σ(·)   g = tanh(·)   o = σ(·)      c′ = f∘c + i∘g      h′ = o∘tanh(c′)

    The cell state prevents vanishing gradients: ∂c′/∂c = f, and if f is near 1 the gradient passes unchanged.
    """
    i, f, g, o = lstm_gates(x, state, W, b)
    c = f * state[1] + i * g
    return o * torch.tanh(c), c


def lstm_gates(x: Tensor, state: State, W: Tensor, b: Tensor) -> tuple[Tensor, ...]:
    """i, f, g, o of :func:`lstm`."""
    i, f, g, o = (x + _product(state[0], W, b)).chunk(4, dim=-1)
    return torch.sigmoid(i), torch.sigmoid(f), torch.tanh(g), torch.sigmoid(o)


def lstm_peephole(x: Tensor, state: State, W: Tensor, b: Tensor, p: Tensor) -> State:
    """The LSTM whose gates also see the cell state (Gers & Schmidhuber 2000, "Recurrent nets that time and count").

    i = σ(· + p_i∘c)   f = σ(· + p_f∘c)   g = tanh(·)   o = σ(· + p_o∘c′)      c′ = f∘c + i∘g      h′ = o∘tanh(c′)

    Each peephole is one weight per unit, p (3·H,) in the order i, f, o; the output gate sees the new cell state. The gradient
    is exact; the original paper truncates it at the peepholes.
    """
    (_, _, _, o), c = _peephole(x, state, W, b, p)
    return o * torch.tanh(c), c


def lstm_peephole_gates(x: Tensor, state: State, W: Tensor, b: Tensor, p: Tensor) -> tuple[Tensor, ...]:
    """i, f, g, o of :func:`lstm_peephole`."""
    return _peephole(x, state, W, b, p)[0]


def _peephole(x: Tensor, state: State, W: Tensor, b: Tensor, p: Tensor) -> tuple[tuple[Tensor, ...], Tensor]:
    """The gates, and c′, which the output gate sees."""
    h, c = state
    i, f, g, o = (x + _product(h, W, b)).chunk(4, dim=-1)
    p_i, p_f, p_o = p.chunk(3)
    i, f, g = torch.sigmoid(i + p_i * c), torch.sigmoid(f + p_f * c), torch.tanh(g)
    c_next = f * c + i * g
    return (i, f, g, torch.sigmoid(o + p_o * c_next)), c_next


def lstm_coupled(x: Tensor, state: State, W: Tensor, b: Tensor) -> State:
    """The LSTM whose input gate is 1 − forget gate: it forgets exactly as much as it writes ("CIFG", Greff et al. 2017).

    f = σ(·)   g = tanh(·)   o = σ(·)      c′ = f∘c + (1 − f)∘g      h′ = o∘tanh(c′)

    Gates f, g, o: three quarters of the LSTM's weights. c′ is a mean of c and g, so |c| never exceeds 1.
    """
    f, g, o = lstm_coupled_gates(x, state, W, b)
    c = f * state[1] + (1 - f) * g
    return o * torch.tanh(c), c


def lstm_coupled_gates(x: Tensor, state: State, W: Tensor, b: Tensor) -> tuple[Tensor, ...]:
    """f, g, o of :func:`lstm_coupled`."""
    f, g, o = (x + _product(state[0], W, b)).chunk(3, dim=-1)
    return torch.sigmoid(f), torch.tanh(g), torch.sigmoid(o)


def gru(x: Tensor, state: State, W: Tensor, b: Tensor) -> State:
    """Gated recurrent unit, reset gate after the product (PyTorch's and cuDNN's form). Gates r, z, n.

    r = σ(x_r + W_r·h + b_r)   z = σ(x_z + W_z·h + b_z)   n = tanh(x_n + r∘(W_n·h + b_n))      h′ = (1 − z)∘n + z∘h

    Here z near 1 keeps the old state, as in Cho et al. (2014) and PyTorch. Texts with h′ = (1 − z)∘h + z∘n (Chung et al.
    2014) have 1 − z in place of z.
    """
    _, z, n = gru_gates(x, state, W, b)
    return ((1 - z) * n + z * state[0],)


def gru_gates(x: Tensor, state: State, W: Tensor, b: Tensor) -> tuple[Tensor, ...]:
    """r, z, n of :func:`gru`."""
    x_r, x_z, x_n = x.chunk(3, dim=-1)
    h_r, h_z, h_n = _product(state[0], W, b).chunk(3, dim=-1)
    r = torch.sigmoid(x_r + h_r)
    return r, torch.sigmoid(x_z + h_z), torch.tanh(x_n + r * h_n)


def gru_reset_before(x: Tensor, state: State, W: Tensor, b: Tensor) -> State:
    """Gated recurrent unit as first published (Cho et al. 2014): the reset gate acts before the product. Gates r, z, n.

    n = tanh(x_n + W_n·(r∘h) + b_n), the rest as in :func:`gru`. W_n can be applied only after r is known: two products
    in a row instead of one, so cuDNN has only the other form.
    """
    _, z, n = gru_reset_before_gates(x, state, W, b)
    return ((1 - z) * n + z * state[0],)


def gru_reset_before_gates(x: Tensor, state: State, W: Tensor, b: Tensor) -> tuple[Tensor, ...]:
    """r, z, n of :func:`gru_reset_before`."""
    (h,) = state
    H = h.shape[-1]
    x_r, x_z, x_n = x.chunk(3, dim=-1)
    h_r, h_z = _product(h, W[: 2 * H], b[: 2 * H]).chunk(2, dim=-1)
    r = torch.sigmoid(x_r + h_r)
    return r, torch.sigmoid(x_z + h_z), torch.tanh(x_n + _product(r * h, W[2 * H :], b[2 * H :]))


def _product(h: Tensor, W: Tensor, b: Tensor) -> Tensor:
    """W·h + b in the precision of autocast, returned in the precision of the state (bf16 products, fp32 gates)."""
    return F.linear(h, W, b).to(h.dtype)


EQUATIONS: dict[str, Step] = {
    step.__name__: step for step in (rnn_tanh, rnn_relu, lstm, lstm_peephole, lstm_coupled, gru, gru_reset_before)
}
"""Name of a cell's entry → its equations."""

GATES: dict[str, Gates] = {
    "lstm": lstm_gates,
    "lstm_peephole": lstm_peephole_gates,
    "lstm_coupled": lstm_coupled_gates,
    "gru": gru_gates,
    "gru_reset_before": gru_reset_before_gates,
}
"""Name of a cell's entry → its gates. A plain RNN has none."""

KEEP_GATES = ("f", "z")
"""The gates that keep the old state: 1 keeps all of it. The LSTM's forget gate, the GRU's update gate as written here."""

CANDIDATES = ("g", "n")
"""Blocks of rows in an entry's ``gates`` that are no gates, but new values in (−1, 1)."""
