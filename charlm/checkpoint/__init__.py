"""A checkpoint is one safetensors file: weights, vocabulary and recipe; ``last`` also has the full training state (resumable).

The file holds tensors, and a JSON text under the metadata key ``charlm``. Nothing is ever unpickled. A checksum covers
metadata and tensors. The file contains no absolute path, user name, host name or time of day.

It is written atomically (:mod:`charlm.files`): at any moment, also after a power failure, a reader finds either the whole
old file or the whole new one.
"""

from charlm.checkpoint.contents import FORMAT, Checkpoint, copy_weights
from charlm.checkpoint.finding import find_checkpoint, find_run
from charlm.checkpoint.reading import describe, load
from charlm.checkpoint.writing import save
from charlm.run_files import RUNS

__all__ = ["FORMAT", "RUNS", "Checkpoint", "copy_weights", "describe", "find_checkpoint", "find_run", "load", "save"]
