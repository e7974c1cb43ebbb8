"""The language model: from symbols to a distribution over the next symbol.

    ids (T, B) → [embedding] → recurrent layer 1 … L, dropout after each → output layer → logits (T, B, V)

With ``attention``, the last layer also attends to its own past outputs (:mod:`charlm.model.attention`).
With ``residual``, each layer but the first adds its input to its output, so that gradients reach the lower layers directly
(He et al. 2016; in stacked LSTMs: Wu et al. 2016).

State is a value: ``model(ids, state)`` returns the next state and stores none, so evaluation and sampling cannot disturb
training. Its parts are ``(L, B, H)`` in fp32: ``(h,)``, or ``(h, c)`` for the LSTM; then attention's memory, ``(W, B, H)``.

    T time steps    B streams    L layers    D input width    H hidden units    G gates    V symbols
"""

from __future__ import annotations

import copy
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from charlm.cells import entry_of
from charlm.config import ModelSection
from charlm.model.attention import Attention
from charlm.model.cells import State
from charlm.model.dropout import Dropout
from charlm.model.engines import ENGINES, Engine, flatten_for_cudnn
from charlm.model.layers import RecurrentLayer
from charlm.runtime import generator


class LanguageModel(nn.Module):
    """A stack of recurrent layers over a vocabulary of V symbols.

    Args:
        model: the recipe's section.
        vocabulary_size: V.
        engine: the name of the resolved engine.
    """

    def __init__(self, model: ModelSection, vocabulary_size: int, engine: str) -> None:
        super().__init__()
        self.section = model
        self.vocabulary_size = vocabulary_size
        self.engine: Engine = ENGINES[engine]
        width = embedding_width(model)
        self.embedding = nn.Parameter(torch.empty(vocabulary_size, width)) if width else None
        widths = [width or vocabulary_size] + [model.hidden] * (model.layers - 1)
        self.layers: list[RecurrentLayer] = nn.ModuleList(RecurrentLayer(model, w) for w in widths)  # type: ignore[assignment]
        self.attention = Attention(model.hidden, model.attention) if model.attention else None
        self.output_weight = None if model.tied else nn.Parameter(torch.empty(vocabulary_size, model.hidden))
        self.output_bias = nn.Parameter(torch.empty(vocabulary_size))

    def initialise(self, seed: int) -> None:
        """Draw the initial weights. Each matrix has its own random sequence, independent of the others."""
        H, bound = self.section.hidden, 1 / math.sqrt(self.section.hidden)
        init = self.section.init
        with torch.no_grad():
            for name, weight in self.named_parameters():
                rng = generator("cpu", seed, "initial weights", name)
                if name == "attention.output":
                    weight.zero_()  # attention has no effect at first
                elif init == "normal":
                    weight.zero_() if weight.dim() == 1 else weight.normal_(0, 0.01, generator=rng)
                elif init == "orthogonal" and name.endswith("weight_hh"):
                    for block in torch.split(weight, H):
                        nn.init.orthogonal_(block, generator=rng)
                elif name == "embedding" and not self.section.tied:
                    weight.normal_(generator=rng)
                else:
                    weight.uniform_(-bound, bound, generator=rng)
            for layer in self.layers:
                if "f" in layer.entry.gates and self.section.forget_bias is not None:
                    biases = [bias for name, bias in layer.named_parameters() if name.startswith("bias")]
                    for number, bias in enumerate(biases):  # a cell sums its biases
                        bias[layer.entry.rows("f", H)] = 0 if number else self.section.forget_bias

    def zero_state(self, streams: int) -> State:
        """The state before the first character: zeros, each ``(L, B, H)``; and an empty memory ``(W, B, H)``."""
        like = self.output_bias
        shapes = state_shapes(self.section, streams)
        return tuple(torch.zeros(shape, dtype=like.dtype, device=like.device) for shape in shapes)

    def forward(self, ids: Tensor, state: State, dropout: Dropout | None = None) -> tuple[Tensor, State]:
        """Run the model over T steps of B streams.

        Args:
            ids: ``(T, B)`` integers below V.
            state: see :meth:`zero_state`.
            dropout: ``None`` in evaluation and sampling.

        Returns:
            Logits of the next symbol ``(T, B, V)``, and the state after the last step.
        """
        features, state = self.features(ids, state, dropout)
        return self.logits(features), state

    def features(self, ids: Tensor, state: State, dropout: Dropout | None = None) -> tuple[Tensor, State]:
        """The input of the output layer, ``(T, B, H)``, and the next state."""
        values, carried = self._layers(ids, state, dropout)
        if self.attention is not None:
            values, memory = self.attention(values, state[-1])
            carried = (*carried, memory)
        if dropout is not None:
            values = dropout.outputs(values, len(self.layers) - 1, self.engine.drop)
        return values, carried

    def attention_weights(self, ids: Tensor, state: State) -> Tensor:
        """Attention weights of the last step over the W steps before it: ``(B, W)``, oldest first. The model has attention."""
        assert self.attention is not None
        values, _ = self._layers(ids, state, None)
        return self.attention.weights(values, state[-1])

    def layer_outputs(self, ids: Tensor, state: State) -> tuple[Tensor, State]:
        """The output h of every layer at every step, ``(T, L, B, H)``, and the next state without attention's memory."""
        each: list[Tensor] = []
        _, after = self._layers(ids, state, None, each)
        return torch.stack(each, dim=1), after

    def _layers(
        self, ids: Tensor, state: State, dropout: Dropout | None, each: list[Tensor] | None = None
    ) -> tuple[Tensor, State]:
        """The last layer's outputs ``(T, B, H)``, and each layer's next state.

        Args:
            each: receives the outputs of every layer, before residual connection and dropout.
        """
        values: Tensor = ids
        embedding: Tensor | None = self.embedding
        if embedding is not None and dropout is not None:
            embedding = dropout.embedding(embedding, self.engine.drop)
        after: list[State] = []
        for number, layer in enumerate(self.layers):
            before = tuple(part[number] for part in state[: len(layer.entry.state)])
            has_recurrent = "weight_hh" in layer.entry.parameters
            weight_hh = None
            if dropout is not None and has_recurrent:
                weight_hh = dropout.recurrent(layer.weight_hh, number, self.engine.drop)
            outputs, layer_after = self.engine.run(layer, values, before, embedding if number == 0 else None, weight_hh)
            after.append(layer_after)
            if each is not None:
                each.append(outputs)
            values = outputs + values if self.section.residual and number > 0 else outputs
            if dropout is not None and number < len(self.layers) - 1:
                values = dropout.outputs(values, number, self.engine.drop)
        return values, tuple(torch.stack(parts) for parts in zip(*after, strict=True))

    def nll_sum(self, ids: Tensor, targets: Tensor, state: State, dropout: Dropout | None = None) -> tuple[Tensor, State]:
        """The loss for training: Σ −ln p(target) in nats, a scalar, and the next state.

        Args:
            targets: ``(T, B)`` ids; ``IGNORED`` ones are not scored.
            ids, state, dropout: see :meth:`forward`.
        """
        features, state = self.features(ids, state, dropout)
        return self.cross_entropy(features.flatten(0, 1), targets.flatten()), state

    def cross_entropy(self, features: Tensor, targets: Tensor) -> Tensor:
        """Output layer and loss: Σ −ln p(target), a scalar in fp64.

        Args:
            features: ``(N, H)``.
            targets: ``(N,)`` ids; ``IGNORED`` ones are not scored.
        """
        return self.engine.cross_entropy(features, self.output_matrix(), self.output_bias, targets)

    def nll(self, features: Tensor, targets: Tensor) -> Tensor:
        """The loss for evaluation: −ln p of each target, ``(N,)`` in fp64, without gradients.

        Args:
            features: ``(N, H)``.
            targets: ``(N,)`` ids; ``IGNORED`` ones are not scored.
        """
        with torch.no_grad():
            return self.engine.nll(features, self.output_matrix(), self.output_bias, targets)

    def logits(self, features: Tensor) -> Tensor:
        """The output layer: ``(…, H)`` → ``(…, V)``."""
        return F.linear(features, self.output_matrix(), self.output_bias)

    def output_matrix(self) -> Tensor:
        """The output layer's weights ``(V, H)``: its own, or the embedding's."""
        weight = self.embedding if self.output_weight is None else self.output_weight
        assert weight is not None
        return weight

    def flatten_for_cudnn(self) -> None:
        """Move the weights of each layer into one block of GPU memory, as cuDNN requires; on a CPU nothing happens."""
        for layer in self.layers:
            flatten_for_cudnn(layer)

    def with_engine(self, name: str) -> LanguageModel:
        """The same weights (not copies) with another engine."""
        other = copy.copy(self)
        other.engine = ENGINES[name]
        return other

    def for_single_steps(self) -> LanguageModel:
        """The same weights, executed by the engine that is fastest for one step per call.

        On a CPU this is the reference: PyTorch's kernels repack all weights at every call, which costs more than the step.
        """
        return self.with_engine("reference") if self.output_bias.device.type == "cpu" else self

    @property
    def is_thread_invariant(self) -> bool:
        """Whether results have the same bits for any number of threads; see :class:`charlm.model.engines.Engine`."""
        return self.engine.is_thread_invariant(self.section)

    @property
    def samples_in_parallel(self) -> bool:
        """Whether N samples side by side take less time than N samples one after the other."""
        return self.engine.samples_in_parallel or self.output_bias.device.type == "cuda"

    def parameter_count(self) -> int:
        """Number of trained parameters."""
        return sum(weight.numel() for weight in self.parameters())


def embedding_width(model: ModelSection) -> int | None:
    """D of the embedding, or ``None`` for one-hot input."""
    return None if model.input == "one-hot" else model.embedding or model.hidden


def count_parameters(model: ModelSection, vocabulary_size: int) -> int:
    """Number of parameters of a model, without building it."""
    return sum(math.prod(shape) for shape in parameter_shapes(model, vocabulary_size).values())


def parameter_shapes(model: ModelSection, vocabulary_size: int) -> dict[str, tuple[int, ...]]:
    """Name and shape of each parameter of a model, without building it."""
    H, V, width = model.hidden, vocabulary_size, embedding_width(model)
    shapes: dict[str, tuple[int, ...]] = {"embedding": (V, width)} if width else {}
    for number in range(model.layers):
        layer = entry_of(model).shapes(H, H if number else width or V)
        shapes |= {f"layers.{number}.{name}": shape for name, shape in layer.items()}
    if model.attention:
        shapes |= {"attention.query": (H, H), "attention.output": (H, H)}
    if not model.tied:
        shapes["output_weight"] = (V, H)
    return shapes | {"output_bias": (V,)}


def state_shapes(model: ModelSection, streams: int) -> list[tuple[int, int, int]]:
    """The shape of each part of a model's state: see :meth:`LanguageModel.zero_state`."""
    shapes = [(model.layers, streams, model.hidden)] * len(entry_of(model).state)
    return [*shapes, (model.attention, streams, model.hidden)] if model.attention else shapes


def activation_bytes(model: ModelSection, vocabulary_size: int, streams: int, steps: int, precision: str, engine: str) -> int:
    """Memory that one training step keeps for its backward pass, in bytes.

    Args:
        streams, steps: B and T.
        precision: resolved: ``fp32``, ``bf16`` or ``fp16``.
        engine: the name of the resolved engine, which estimates its part (:meth:`charlm.model.engines.Engine.kept_bytes`).
            Attention adds W + T scores and weights per character.
    """
    size = 4 if precision == "fp32" else 2
    attention = (model.attention + steps) * (4 + 4 + size) + 6 * model.hidden * size if model.attention else 0
    return streams * steps * (ENGINES[engine].kept_bytes(model, vocabulary_size, size) + attention)
