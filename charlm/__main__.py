"""The entry point: ``charlm``, ``python -m charlm`` and ``torchrun -m charlm`` all arrive here."""

from __future__ import annotations

import signal
from types import FrameType


def main() -> None:
    """Run the command line and exit with its status."""
    try:
        from charlm.cli.streams import prepare_streams

        prepare_streams()
        _end_like_ctrl_c()
        from charlm.cli.app import run

        code = run()
        from charlm.distributed import end_process

        end_process(code)
        raise SystemExit(code)
    except KeyboardInterrupt:  # before `run` could take care of it, or after
        raise SystemExit(130) from None


def _end_like_ctrl_c() -> None:
    """Let SIGTERM and SIGHUP (a closed terminal) end any command as Ctrl-C does: locks released, no half-made folders.

    A training handles all three itself. SIGHUP stays ignored under ``nohup``.
    """
    for name in ("SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _interrupt)


def _interrupt(number: int, frame: FrameType | None) -> None:
    signal.signal(number, signal.SIG_IGN)  # a closing terminal sends several; the cleanup after the first one continues
    raise KeyboardInterrupt


if __name__ == "__main__":
    main()
