"""All benchmarks in order, each in a process of its own, with arguments that keep all under ten minutes.

Each prints its table and writes its JSON as it does alone. One that fails does not stop the others; the end
says which did, how long each took, and the exit code is 1 then. What is given after `--` goes to those that
compare with upstream PtychoPINN: `python benchmarks/suite.py -- --peer DIR`.

    python benchmarks/suite.py [--only startup training ...] [-- --peer DIR]
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path

import common

SUITE: dict[str, tuple[str, ...]] = {
    "startup": ("--rounds=3",),
    "training": ("--rounds=3", "--seconds=2", "--batch-sizes", "8", "16", "64"),
    "inference": ("--rounds=3",),
    "stitching": (),
    "memory": ("--times", "1", "4"),
    "refinement": (),
    "quality": ("--marks", "20", "40", "60", "--flat-epochs", "10", "30"),
    "troubles": ("--scans", "40", "--good", "10"),
    "unknown_probe": ("--scans=5", "--orient=4"),
    "settings_share": ("--seconds=20",),
    "settings_cost": ("--rounds=100",),
    "typo_sweep": ("--quick",),
}
"""Script -> arguments; longer and more careful runs are made with the scripts themselves."""
WITH_PEER = ("startup", "training", "inference")


def run(name: str, more: list[str]) -> tuple[int, float]:
    """Run one benchmark with its output shown; return exit code and seconds."""
    script = Path(__file__).parent / f"{name}.py"
    words = [*SUITE[name], *(more if name in WITH_PEER else ())]
    print(f"\n== {name} {' '.join(words)}", flush=True)
    start = time.perf_counter()
    code = subprocess.run([sys.executable, str(script), *words], check=False).returncode
    return code, time.perf_counter() - start


def main() -> int:
    words = sys.argv[1:]
    cut = words.index("--") if "--" in words else len(words)
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", choices=list(SUITE), default=list(SUITE), metavar="NAME")
    space = parser.parse_args(words[:cut])
    done = {name: run(name, words[cut + 1 :]) for name in space.only}
    print()
    rows = [(name, f"{seconds:.0f}", code or "") for name, (code, seconds) in done.items()]
    common.print_table(("benchmark", "seconds", "exit code"), rows)
    print(f"{sum(seconds for _, seconds in done.values()):.0f} s in all")
    return int(any(code for code, _ in done.values()))


if __name__ == "__main__":
    raise SystemExit(main())
