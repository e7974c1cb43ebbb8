"""Engines: ways to execute a model, with the same weights and results but different speed.

    reference   the equations of :mod:`charlm.model.cells` in a loop: any device and precision; the others are tested against it
    torch       PyTorch's fused kernels: oneDNN on a CPU, cuDNN on a GPU
    native      charlm's C++ kernels, for CPUs: :mod:`charlm.model.native`

To add an engine, write a subclass of :class:`ReferenceEngine` with ``why_not`` and ``run``, and list it in ``ENGINES``.
``engine: auto`` takes the first that can run the model.

    T time steps    B streams    D input width    H hidden units    G gates    V symbols
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from charlm.cells import entry_of
from charlm.config import ModelSection
from charlm.data.streams import IGNORED
from charlm.errors import UsageError
from charlm.model.cells import EQUATIONS, State
from charlm.model.dropout import Dropout, Key, Places, masked
from charlm.model.layers import Network, RecurrentLayer
from charlm.model.native.engine import NativeEngine


class FusedOptimizer(Protocol):
    """An optimizer's step in fewer passes than PyTorch, with the same result and the same stored moments."""

    def norm(self) -> float:
        """The Euclidean norm of all gradients."""

    def step(self, factor: float) -> None:
        """Update the weights as if every gradient had been multiplied by ``factor``."""


class StepPlan(Protocol):
    """Computes the loss and all gradients of a training step, and writes each gradient into the ``grad`` of its weight."""

    def __call__(
        self, inputs: Tensor, targets: Tensor, factor: float, state: State, dropout: Dropout | None
    ) -> tuple[float, State]:
        """Write the gradient of ``factor`` times the sum of the losses.

        Args:
            inputs: ``(T, B)`` ids.
            targets: ``(T, B)`` ids; negative ones are not scored.
            factor: on the gradient.
            state: before the batch, each ``(L, B, H)``.
            dropout: ``None``: none, even if the recipe has some. It says which streams of the whole batch these are.

        Returns:
            The sum of the losses in nats, and the state after the batch.
        """


class BlockSampler(Protocol):
    """Generates characters for N parallel streams, many per call."""

    @property
    def is_nonfinite(self) -> bool:
        """Whether a logit was NaN or infinite; the characters drawn are then invalid."""

    def draw(self, uniforms: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
        """Draw the next characters.

        Args:
            uniforms: ``(count, N)`` numbers in [0, 1), one for each draw.

        Returns:
            Their ids, ``(count, N)``.
        """


class Engine(Protocol):
    """Executes the layers, the loss, dropout, the optimizer and sampling.

    Attributes:
        name: in recipes.
        sampling_precisions: that it samples in, ``fp32`` first.
        samples_in_parallel: whether N samples side by side take less time than N samples one after the other.
        fp32_reason: why ``precision: auto`` is always fp32 with this engine; ``None``: it depends on the device.
    """

    name: str
    sampling_precisions: tuple[str, ...]
    samples_in_parallel: bool
    fp32_reason: str | None

    def why_not(self, model: ModelSection, device: torch.device) -> str | None:
        """Return why this engine cannot run this model on this device; ``None``: it can."""

    def is_thread_invariant(self, model: ModelSection) -> bool:
        """Whether an update has the same bits for any number of threads, if PyTorch itself has one thread."""

    def run(
        self, layer: RecurrentLayer, inputs: Tensor, state: State, embedding: Tensor | None, weight_hh: Tensor | None = None
    ) -> tuple[Tensor, State]:
        """Run a layer over T steps.

        Args:
            inputs: ``(T, B, D)`` numbers, or ``(T, B)`` ids of rows of ``embedding``.
            state: each ``(B, H)``.
            embedding: ``(V, D)``; ``None`` with ids: one-hot vectors, D = V.
            weight_hh: replaces the layer's own, in training only.

        Returns:
            The outputs h of every step, ``(T, B, H)``, and the state after the last.
        """

    def cross_entropy(self, features: Tensor, weight: Tensor, bias: Tensor, targets: Tensor) -> Tensor:
        """Output layer and loss: Σ −ln softmax(W·features + b)[target], a scalar in fp64.

        Args:
            features: ``(N, H)``, the last layer's outputs.
            weight: ``(V, H)``.
            bias: ``(V,)``.
            targets: ``(N,)`` ids; negative ones are not scored.
        """

    def nll(self, features: Tensor, weight: Tensor, bias: Tensor, targets: Tensor) -> Tensor:
        """−ln p of each target, ``(N,)`` in fp64, without gradients; arguments as for :meth:`cross_entropy`."""

    def plan(self, network: Network, precision: str) -> StepPlan | None:
        """This engine's code for all gradients of a training step; ``None``: they are computed with autograd.

        Args:
            network: with a ``grad`` for each parameter, in which the plan writes.
            precision: resolved: ``fp32``, ``bf16`` or ``fp16``.
        """

    def fused_optimizer(self, optimizer: torch.optim.Optimizer) -> FusedOptimizer | None:
        """This engine's code for the optimizer; ``None``: PyTorch's is used."""

    def drop(self, values: Tensor, places: Places, key: Key, threshold: int) -> Tensor:
        """Dropout; arguments and result as in :func:`charlm.model.dropout.masked`."""

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
    ) -> BlockSampler | None:
        """This engine's code to continue N streams after a prompt; ``None``: this network is sampled step by step.

        Args:
            logits: ``(N, V)`` for the next character.
            state: each ``(L, N, H)``.
            temperature, top_k, top_p: see :class:`charlm.sampling.SamplingParams`.
            banned: ids that are never drawn.
            dtype: type of the operands of products, one of ``sampling_precisions``.
        """

    def kept_bytes(self, model: ModelSection, vocabulary_size: int, size: int) -> int:
        """Memory that a training step keeps for its backward pass, per character, without attention.

        Args:
            vocabulary_size: V.
            size: bytes of an operand of a product.
        """


class ReferenceEngine:
    """The equations, step by step."""

    name = "reference"
    sampling_precisions: tuple[str, ...] = ("fp32",)
    samples_in_parallel = False
    fp32_reason: str | None = "the reference engine gains nothing from bf16"

    def why_not(self, model: ModelSection, device: torch.device) -> str | None:
        """This engine runs every model on every device."""
        return None

    def is_thread_invariant(self, model: ModelSection) -> bool:
        """PyTorch's matrix products divide long sums between threads."""
        return False

    def run(
        self, layer: RecurrentLayer, inputs: Tensor, state: State, embedding: Tensor | None, weight_hh: Tensor | None = None
    ) -> tuple[Tensor, State]:
        """See :class:`Engine`."""
        step = EQUATIONS[layer.entry.name]
        x = self._input_gates if "weight_ih" in layer.entry.parameters else self._vectors
        parameters = {name: getattr(layer, name) for name in layer.entry.step_parameters}
        if weight_hh is not None:
            parameters["weight_hh"] = weight_hh
        outputs = []
        for x_t in x(layer, inputs, embedding).to(state[0].dtype).unbind(0):
            state = step(x_t, state, *parameters.values())
            outputs.append(state[0])
        return torch.stack(outputs), state

    def cross_entropy(self, features: Tensor, weight: Tensor, bias: Tensor, targets: Tensor) -> Tensor:
        """See :class:`Engine`."""
        return self.nll(features, weight, bias, targets).sum()

    def nll(self, features: Tensor, weight: Tensor, bias: Tensor, targets: Tensor) -> Tensor:
        """See :class:`Engine`."""
        logits = F.linear(features, weight, bias).float()
        return F.cross_entropy(logits, targets, ignore_index=IGNORED, reduction="none").double()

    def plan(self, network: Network, precision: str) -> StepPlan | None:
        """See :class:`Engine`."""
        return None

    def fused_optimizer(self, optimizer: torch.optim.Optimizer) -> FusedOptimizer | None:
        """See :class:`Engine`."""
        return None

    def drop(self, values: Tensor, places: Places, key: Key, threshold: int) -> Tensor:
        """See :class:`Engine`."""
        return masked(values, places, key, threshold)

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
    ) -> BlockSampler | None:
        """See :class:`Engine`."""
        return None

    def kept_bytes(self, model: ModelSection, vocabulary_size: int, size: int) -> int:
        """An estimate.

        Per layer: G·H gates, their pre-activations, the states and the dropped-out output, about (2G + 4)·H numbers. For
        the loss: logits, their gradient and the log-softmax, 3·V numbers in fp32.
        """
        G = len(entry_of(model).gates)
        return model.layers * (2 * G + 4) * model.hidden * size + 3 * vocabulary_size * 4

    @staticmethod
    def _input_gates(layer: RecurrentLayer, inputs: Tensor, embedding: Tensor | None) -> Tensor:
        """W_ih·input + b_ih for all steps at once, ``(T, B, G·H)``; a cell may have no b_ih.

        Ids are looked up: a matrix times a one-hot vector is one of its columns, so the products of all V symbols form a
        table, from which T·B rows are gathered. If there are fewer ids than symbols, only their rows are computed.
        """
        if embedding is not None and not inputs.is_floating_point() and inputs.numel() < len(embedding):
            inputs = F.embedding(inputs, embedding)
        bias = layer.bias_ih if "bias_ih" in layer.entry.parameters else None
        if inputs.is_floating_point():
            return F.linear(inputs, layer.weight_ih, bias)
        columns = layer.weight_ih.t() if embedding is None else F.linear(embedding, layer.weight_ih)
        return F.embedding(inputs, columns if bias is None else columns + bias)

    @staticmethod
    def _vectors(layer: RecurrentLayer, inputs: Tensor, embedding: Tensor | None) -> Tensor:
        """The inputs themselves, ``(T, B, D)``, for a cell without weight_ih."""
        if inputs.is_floating_point():
            return inputs
        return F.one_hot(inputs, layer.width) if embedding is None else F.embedding(inputs, embedding)


class TorchEngine(ReferenceEngine):
    """PyTorch's kernels: all T steps of a layer in one call, which is fastest with cuDNN."""

    name = "torch"
    fp32_reason: str | None = None

    def why_not(self, model: ModelSection, device: torch.device) -> str | None:
        """PyTorch has one form of each cell."""
        entry = entry_of(model)
        return None if self.name in entry.kernels else f"PyTorch has no {entry.title}"

    def run(
        self, layer: RecurrentLayer, inputs: Tensor, state: State, embedding: Tensor | None, weight_hh: Tensor | None = None
    ) -> tuple[Tensor, State]:
        """See :class:`Engine`."""
        weight_ih, inputs = self._input_product(layer.weight_ih, inputs, embedding, state[0].dtype)
        weight_hh = layer.weight_hh if weight_hh is None else weight_hh
        weights: list[Tensor] = [weight_ih, weight_hh, layer.bias_ih, layer.bias_hh]
        carried = tuple(part.unsqueeze(0) for part in state)  # PyTorch's first dimension: one layer
        if inputs.device.type == "cuda":
            # Autocast's wrapper around cuDNN casts to fp16 whatever type autocast has: bf16 would silently be fp16.
            dtype = torch.get_autocast_dtype("cuda") if torch.is_autocast_enabled("cuda") else inputs.dtype
            inputs, carried = inputs.to(dtype), for_cudnn(carried, dtype)
            if dtype == torch.float16:
                inputs, weights[0] = for_persistent_kernel(inputs, weight_ih, weight_hh.shape[1])
            if dtype != weight_hh.dtype or weight_hh is not layer.weight_hh:
                weights = one_block(weights, dtype)
            with torch.autocast("cuda", enabled=False):
                outputs, last = self._kernel(layer, inputs, carried, weights)
        else:
            outputs, last = self._kernel(layer, inputs, carried, weights)
        return outputs, tuple(part.squeeze(0).to(state[0].dtype) for part in last)

    @staticmethod
    def _kernel(layer: RecurrentLayer, inputs: Tensor, carried: State, weights: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """One call of PyTorch's kernel: the outputs, and the state with PyTorch's first dimension of layers."""
        # In PyTorch's order: has biases, layers, dropout, training, bidirectional, batch first.
        options = (True, 1, 0.0, torch.is_grad_enabled(), False, False)
        kernel = getattr(torch, layer.entry.kernels["torch"])
        outputs, *last = kernel(inputs, carried if len(carried) > 1 else carried[0], weights, *options)
        return outputs, last

    @staticmethod
    def _input_product(
        weight_ih: Tensor, inputs: Tensor, embedding: Tensor | None, dtype: torch.dtype
    ) -> tuple[Tensor, Tensor]:
        """Weights and vectors whose product is the input's part of the gates.

        PyTorch's kernels take vectors, not ids. With an embedding, W_ih·(E·x) = (W_ih·E)·x for a one-hot x: multiplying the
        matrices first makes the vectors V wide instead of D, which is faster if V < D and there are more ids than symbols.
        """
        if inputs.is_floating_point():
            return weight_ih, inputs
        if embedding is not None:
            V, D = embedding.shape
            if min(D, inputs.numel()) <= V or inputs.device.type == "cuda":  # cuDNN needs its weights in one block
                return weight_ih, F.embedding(inputs, embedding)
            weight_ih = F.linear(weight_ih, embedding)
        one_hot = torch.eye(weight_ih.shape[1], dtype=dtype, device=inputs.device)
        return weight_ih, F.embedding(inputs, one_hot)


def flatten_for_cudnn(layer: RecurrentLayer) -> None:
    """Move the weights of a layer into one block of GPU memory, in cuDNN's order; on a CPU nothing happens."""
    if TorchEngine.name in layer.entry.kernels:
        hidden = layer.weight_hh.shape[1]
        holder = getattr(nn, layer.entry.cell.upper())(layer.width, hidden, device="meta")
        for name, weight in layer.named_parameters():
            setattr(holder, f"{name}_l0", weight)
        holder.flatten_parameters()


def for_cudnn(state: State, dtype: torch.dtype) -> State:
    """The state for cuDNN: in the type of the inputs, and contiguous (an expanded state of a prompt is not)."""
    return tuple(part.to(dtype).contiguous() for part in state)


def for_persistent_kernel(inputs: Tensor, weight_ih: Tensor, hidden: int) -> tuple[Tensor, Tensor]:
    """Append zeros to inputs and weights, which do not change the product, so that cuDNN can keep W_hh on the chip.

    PyTorch asks cuDNN for this kernel only in fp16, if the input's width and H ≤ 1024 are multiples of 128, and B is a multiple
    of 8 up to 128 (``use_persist_common_heuristics`` in its ``cudnn/RNN.cpp``).

    Args:
        inputs: ``(T, B, D)``.
        weight_ih: ``(G·H, D)``.
        hidden: H.
    """
    missing = -inputs.shape[-1] % 128
    if missing == 0 or hidden % 128 or hidden > 1024 or inputs.shape[1] % 8 or inputs.shape[1] > 128:
        return inputs, weight_ih
    return F.pad(inputs, (0, missing)), F.pad(weight_ih, (0, missing))


def one_block(weights: list[Tensor], dtype: torch.dtype) -> list[Tensor]:
    """The same weights as views of one new block of memory, in cuDNN's order; otherwise cuDNN copies them at every call."""
    block = torch.cat([weight.flatten() for weight in weights]).to(dtype)
    parts = torch.split(block, [weight.numel() for weight in weights])
    return [part.view(weight.shape) for part, weight in zip(parts, weights, strict=True)]


ENGINES: dict[str, Engine] = {"native": NativeEngine(), "torch": TorchEngine(), "reference": ReferenceEngine()}
"""All engines, the fastest first; ``auto`` tries them in this order."""


def resolve_engine(model: ModelSection, device: torch.device) -> tuple[str, str]:
    """Choose the engine.

    Returns:
        Its name and why it was chosen.

    Raises:
        UsageError: the recipe names an engine that cannot run this model here.
    """
    if model.engine != "auto":
        if reason := ENGINES[model.engine].why_not(model, device):
            raise UsageError(f"model.engine: {model.engine} cannot run this recipe: {reason}; use engine: auto")
        return model.engine, "as the recipe says"
    passed_over: list[str] = []
    for name, engine in ENGINES.items():
        reason = engine.why_not(model, device)
        if reason is None:
            return name, "; ".join(passed_over) or "the fastest that runs this model here"
        passed_over.append(reason)
    raise AssertionError("the reference engine runs everything")
