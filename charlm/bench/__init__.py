"""Measures the speed of every cell on this machine, with each engine and precision, beside the same program in torch.nn.

Three kinds of work are timed:

    train       whole optimizer steps: forward, loss, backward, clip, SGD; state carried, one-hot input, no dropout
    evaluate    exact evaluation of one stream, fp32
    sample      one stream, character by character

The speed of a shared machine drifts. So all cases of a kind are built and warmed up first, then timed in turns, briefly and
several times. The result is the median over the turns, with the lowest and the highest. Large matrix products take turns
too: the fastest is the ceiling that training is compared with. The report warns if other processes used the processor.

    record.py   cases and results
    work.py     the work that is timed: training, evaluation, sampling, matrix products
    timing.py   times cases in turns
    memory.py   peak memory of a case
    sweep.py    plans and measures a sweep
"""

from charlm.bench.memory import peak_memory, peak_on_gpu
from charlm.bench.record import CELLS, KINDS, TORCH_NN, Configuration, NotRun, Report, Row, Shape, Speed, section_of
from charlm.bench.sweep import PRECISIONS, Progress, Sweep, bench, plan, precisions_on

__all__ = [
    "CELLS",
    "KINDS",
    "PRECISIONS",
    "TORCH_NN",
    "Configuration",
    "NotRun",
    "Progress",
    "Report",
    "Row",
    "Shape",
    "Speed",
    "Sweep",
    "bench",
    "peak_memory",
    "peak_on_gpu",
    "plan",
    "precisions_on",
    "section_of",
]
