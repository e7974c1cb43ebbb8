"""The entry point: ``charlm``, ``python -m charlm`` and ``torchrun -m charlm`` all arrive here."""


def main() -> None:
    """Run the command line and exit with its status."""
    try:
        from charlm.cli.app import run

        raise SystemExit(run())
    except KeyboardInterrupt:  # before `run` could take care of it, or after
        raise SystemExit(130) from None


if __name__ == "__main__":
    main()
