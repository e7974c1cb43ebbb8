"""Finds a recipe by successive halving: many settings are trained briefly, the better half twice as long, and so on.

    python tools/search.py shakespeare-fast --set data.split='[0.85, 0.05, 0.1]' \
        --vary train.lr=0.002,0.003,0.004 --vary model.dropout=0.2,0.3,0.4 --rungs 3

Every training of a rung is a whole one, its schedule included; the last rung has the recipe's own length. Settings are ranked
by `best` on the validation part, so hold another part back for the result that you report. The first of all settings (the first
value of each `--vary`: what the recipe has now) is never dropped, so that each rung shows what a change is worth. Runs are in
the folder `--out` and are not repeated. (Jamieson & Talwalkar 2016.)
"""

from __future__ import annotations

import argparse
import random
import sys
from pathlib import Path

import charlm
from charlm.comparison.candidates import Candidate, candidates
from charlm.comparison.results import final_record
from charlm.errors import CharlmError, DivergedError, UsageError


def trained(candidate: Candidate, updates: int, seed: int, folder: Path) -> float:
    """The best validation nats of one training, from its folder if it is there already."""
    more = [f"train.total_steps={updates}", "train.time=null", f"train.seed={seed}"]
    out = folder / f"{candidate.name}-{updates}-seed{seed}"
    record = final_record(out, candidate.load(*more))
    if record is None:
        try:
            record = charlm.train(candidate.load(*more), out=out, overwrite=True)
        except DivergedError as error:
            print(f"{candidate.name}: {error}", file=sys.stderr)
            return float("inf")
        if record["stopped_because"] == "interrupted":
            raise KeyboardInterrupt
    if record["best_validation_nats"] is None:
        raise UsageError(f"{out} has no validation result; settings are ranked by it (data.split)")
    return float(record["best_validation_nats"])


def main(arguments: list[str] | None = None) -> None:
    """Read the command line, train, and print a table per rung."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("recipe")
    parser.add_argument("--vary", action="append", default=[], metavar="KEY=V1,V2,…")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--rungs", type=int, default=3)
    parser.add_argument("--sample", type=int, help="try this number of settings, drawn at random, instead of all")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("checkpoints/search"))
    given = parser.parse_args(arguments)

    first, *others = candidates([given.recipe], vary=given.vary, overrides=given.set)
    if given.sample is not None:
        others = random.Random(given.seed).sample(others, min(len(others), given.sample))
    updates = first.load().recipe.train.total_steps
    if updates is None:
        raise UsageError(f"{given.recipe} says no train.total_steps; give it with --set")
    for rung in range(given.rungs):
        length = max(1, updates >> (given.rungs - 1 - rung))
        scores = {one.name: trained(one, length, given.seed, given.out) for one in (first, *others)}
        print(f"\n{length:,} updates: validation nats, against {scores[first.name]:.4f} of {first.name}")
        for name, nats in sorted(scores.items(), key=lambda score: score[1]):
            print(f"  {nats:.4f}  {nats - scores[first.name]:+.4f}  {name}", flush=True)
        others = sorted(others, key=lambda one: scores[one.name])[: len(others) // 2]


if __name__ == "__main__":
    try:
        main()
    except CharlmError as error:
        sys.exit(f"error: {error}")
