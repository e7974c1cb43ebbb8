"""Writes the logs of a run's folder: ``metrics.jsonl`` and ``samples.txt``."""

from __future__ import annotations

from charlm.training.events import Evaluated, Event, Finished, Sampled, StepDone, ThreadsChanged
from charlm.training.run_folder import RunFolder


class RunLog:
    """Records the events of a run in its folder.

    It comes before all other observers. A checkpoint stores how long the logs are, so they must have every event of its step.

    Args:
        folder: locked by this process.
    """

    def __init__(self, folder: RunFolder) -> None:
        self._folder = folder

    def __call__(self, event: Event) -> None:
        """Record one event.

        Raises:
            RunFolderError: a log cannot be written, or the folder is no longer locked by this process.
        """
        record = self._folder.record
        match event:
            case StepDone():
                record(
                    {"kind": "step", "step": event.step, "epoch": round(event.epoch, 4), "nats": event.nats,
                     "learning_rate": event.learning_rate, "gradient_norm": event.gradient_norm,
                     "characters": event.characters, "seconds": round(event.seconds, 3)}
                )  # fmt: skip
            case ThreadsChanged():
                record({"kind": "threads", "step": event.step, "threads": event.threads})
            case Evaluated():
                both = {"weights_nats": event.weights_nats, "average_nats": event.average_nats}
                record(
                    {"kind": "evaluation", "step": event.step, "epoch": event.epoch, "nats": event.nats,
                     **(both if event.average_nats is not None else {}), "regular": event.regular,
                     "wall": round(event.seconds_since_start, 2), "characters": event.characters}
                )  # fmt: skip
            case Sampled():
                self._folder.record_sample(event.heading, event.prompt + event.text)
            case Finished():
                record({"kind": "finished", **event.record})
            case _:
                pass
