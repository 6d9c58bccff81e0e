"""`ptycho-torch`, and `python -m ptycho_torch`."""

import sys


def main() -> int:
    """Run the program; also while it is being imported, Ctrl-C ends it in order."""
    try:
        from ptycho_torch.cli import main as command
    except KeyboardInterrupt:
        from ptycho_exec.interrupts import EXIT_CODE, Interrupted

        print(f"ptycho-torch: {Interrupted()}", file=sys.stderr)
        return EXIT_CODE
    return command()


if __name__ == "__main__":
    sys.exit(main())
