"""The key that a user meant by an unknown one: similar spelling, or the name that other programs use."""

from __future__ import annotations

import difflib
from collections.abc import Sequence

SYNONYMS = {
    synonym: key
    for key, synonyms in {
        "corpus": "dataset data_path data_dir input_file text_file text",
        "data.split": "train_frac val_frac test_frac validation_split",
        "model.cell": "rnn_type cell_type model_type rnn",
        "model.hidden": "hidden_size hidden_dim rnn_size n_hidden num_hidden num_hiddens num_units units nhid size d_model",
        "model.layers": "num_layers n_layers n_layer nlayers depth",
        "model.dropout": "p dropout_rate drop_rate dropout_p drop_prob",
        "model.embedding": "embedding_size embedding_dim embed_size embed_dim emb_size emsize n_embd",
        "model.tied": "tie_weights tied_weights weight_tying",
        "model.nonlinearity": "activation",
        "train.batch": "batch_size bs num_streams",
        "train.seq_length": "seq_len sequence_length block_size bptt unroll num_steps n_ctx context_length window",
        "train.optimizer": "optim optimiser opt",
        "train.lr": "learning_rate eta lrate max_lr alpha",
        "train.lr_final": "min_lr lr_min",
        "train.weight_decay": "wd l2 decay",
        "train.betas": "beta beta1 beta2",
        "train.clip": "grad_clip clip_grad gradient_clip clip_norm grad_norm max_grad_norm clip_value",
        "train.schedule": "lr_schedule scheduler lr_scheduler",
        "train.decay_ratio": "decay_share decay_fraction decay_frac fract_decay cooldown cooldown_ratio",
        "train.warmup": "warmup_steps warmup_iters num_warmup_steps",
        "train.average": "ema ema_decay swa",
        "train.epochs": "num_epochs n_epochs max_epochs nepochs",
        "train.total_steps": "max_iters iterations iters num_iters max_steps updates num_updates",
        "train.time": "max_time time_limit",
        "train.precision": "dtype amp fp16 bf16",
        "train.threads": "num_threads n_threads cpus",
        "train.seed": "random_seed manual_seed",
        "evaluate.every": "eval_every eval_interval eval_iters validate_every",
        "checkpoint.every": "save_every save_interval checkpoint_every",
        "sample.length": "sample_length max_new_tokens",
        "sample.temperature": "temp",
        "sample.prompt": "start prime primetext seed_text",
    }.items()
    for synonym in synonyms.split()
}
"""Names that other programs use → charlm's keys."""


def suggestions(key: str, known: Sequence[str]) -> list[str]:
    """The keys that ``key`` probably means: by synonym, by the same last word, by a similar last word, or by spelling.

    Args:
        key: an unknown dotted name.
        known: the names to choose from.
    """
    word = key.rpartition(".")[2]
    if word in SYNONYMS:
        return [SYNONYMS[word]]
    same_word = [name for name in known if name.rpartition(".")[2] == word]
    if same_word:
        return same_word
    by_word = {name.rpartition(".")[2]: name for name in known}
    close = [by_word[match] for match in difflib.get_close_matches(word, by_word, n=1, cutoff=0.7)]
    return close or difflib.get_close_matches(key, known, n=1)


def did_you_mean(names: Sequence[str]) -> str:
    """The end of an error message that offers these names; empty without names."""
    return f"; did you mean {' or '.join(names)}?" if names else ""
