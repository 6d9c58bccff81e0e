"""`ptycho-exec`, and `python -m ptycho_exec`."""

import sys

from ptycho_exec.interrupts import run_program


def main() -> int:
    """Run the program."""
    return run_program("ptycho-exec", "ptycho_exec.cli.commands")


if __name__ == "__main__":
    sys.exit(main())
