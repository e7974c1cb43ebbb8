"""The entry point: ``charlm``, ``python -m charlm`` and ``torchrun -m charlm`` all arrive here."""


def main() -> None:
    """Run the command line and exit with its status."""
    from charlm.cli.app import run

    raise SystemExit(run())


if __name__ == "__main__":
    main()
