"""Trains recipes, cells and settings side by side and collects their results.

    from charlm.comparison import compare

    found = compare(["shakespeare"], cells=["gru", "lstm"], seeds=3)

A candidate is a recipe with overrides, trained as ``charlm train`` would train it, once per seed. Each run has its own
folder, and its results are read from there. So a comparison can be interrupted and repeated at any time.

One quantity is equal for all candidates:

    characters   each recipe as it is: cells and settings of one recipe then read the same text equally often
    parameters   the hidden widths are adapted until all candidates have as many parameters as the first
    time         the lengths are planned so that all candidates train equally long, schedule included

Seconds are seconds of training, without evaluations, samples and saves.

    candidates.py   the rows: recipes × cells × varied values
    equal.py        widths for equal parameters, lengths for equal time
    run.py          plans the runs
    jobs.py         trains those that are not finished, in turn or side by side
    worker.py       a process that trains one run
    results.py      results of finished runs
"""

from charlm.comparison.jobs import Reporter, SilentReporter
from charlm.comparison.results import Comparison
from charlm.comparison.run import Equal, compare

__all__ = ["Comparison", "Equal", "Reporter", "SilentReporter", "compare"]
