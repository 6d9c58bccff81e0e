"""`ptycho-torch`, and `python -m ptycho_torch`."""

import sys

from ptycho_exec.interrupts import run_program


def main() -> int:
    """Run the program."""
    return run_program("ptycho-torch", "ptycho_torch.cli")


if __name__ == "__main__":
    sys.exit(main())
