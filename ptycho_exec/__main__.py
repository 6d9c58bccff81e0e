"""`ptycho-exec`, and `python -m ptycho_exec`."""

import sys


def main() -> int:
    """Run the program; also while it is being imported, Ctrl-C ends it in order."""
    try:
        from ptycho_exec.cli.commands import main as command
    except KeyboardInterrupt:
        from ptycho_exec.interrupts import EXIT_CODE, Interrupted

        print(f"ptycho-exec: {Interrupted()}", file=sys.stderr)
        return EXIT_CODE
    return command()


if __name__ == "__main__":
    sys.exit(main())
