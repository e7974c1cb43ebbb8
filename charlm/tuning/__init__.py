"""Searches the settings of a recipe that give the lowest validation loss.

    import charlm

    found = charlm.tune("mine.txt", {"train.lr": "0.001..0.01", "model.cell": "lstm,gru"}, time="60s")
    print(found.best.settings, found.best.validation_nats)

Candidates are drawn at random, which needs fewer trials than a grid (Bergstra & Bengio 2012). Successive halving (Jamieson &
Talwalkar 2016; Li et al. 2018, "Hyperband") trains all of them briefly, the better half twice as long, and so on. Every
training is a whole one, its schedule included: a longer one is not the continuation of a shorter one.

    space.py    keys with their ranges or values
    search.py   draws candidates, trains them, keeps the better half
"""

from charlm.tuning.search import Trial, Tuned, tune

__all__ = ["Trial", "Tuned", "tune"]
