"""All benchmarks in order, each in a process of its own, with arguments that keep all under ten minutes.

Each prints its table and writes its JSON as it does alone. One that fails does not stop the others; the end
says which did, how long each took, and the exit code is 1 then. `--peer` names what to run beside ours: a
checkout of upstream PtychoPINN, ptychi, xptycho. What is given after `--` goes to those that run a checkout.

    python benchmarks/suite.py [--only startup ...] [--peer DIR ptychi xptycho] [-- --peer-python FILE]
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path

import common
import engines

SUITE: dict[str, tuple[str, ...]] = {
    "startup": ("--rounds=5",),
    "training": ("--rounds=5", "--seconds=1.5", "--batch-sizes", "8", "16", "64"),
    "inference": ("--rounds=5",),
    "stitching": (),
    "memory": ("--times", "1", "4"),
    "large": ("--scans", "64x500", "64x2000", "128x256"),
    "refinement": (),
    "quality": ("--marks", "20", "40", "60", "--flat-epochs", "10", "30"),
    "troubles": ("--scans", "40", "--good", "10"),
    "unknown_probe": ("--scans=5", "--orient=4"),
    "settings_share": ("--seconds=20",),
    "settings_cost": ("--rounds=100",),
    "typo_sweep": ("--quick",),
}
"""Script -> arguments; longer and more careful runs are made with the scripts themselves."""
WITH_CHECKOUT = ("startup", "training", "inference")
"""Scripts that run a checkout of upstream PtychoPINN; the other peers belong to `refinement`."""


def run(name: str, more: list[str]) -> tuple[int, float]:
    """Run one benchmark with its output shown; return exit code and seconds."""
    script = Path(__file__).parent / f"{name}.py"
    words = [*SUITE[name], *more]
    print(f"\n== {name} {' '.join(words)}", flush=True)
    start = time.perf_counter()
    code = subprocess.run([sys.executable, str(script), *words], check=False).returncode
    return code, time.perf_counter() - start


def words_for_peers(peers: list[str], more: list[str]) -> dict[str, list[str]]:
    """Return each script's arguments about the peers: a folder is a checkout, other names are engines."""
    named = [peer for peer in peers if peer in engines.ENGINES]
    folders = [peer for peer in peers if peer not in engines.ENGINES]
    if len(folders) > 1 or not all(Path(folder).is_dir() for folder in folders):
        raise SystemExit(
            f"--peer {' '.join(folders)} names no checkout\n  expected: one folder with upstream PtychoPINN, "
            f"and {' or '.join(engines.ENGINES)}\n  fix:      check the path"
        )
    for name in named:
        engines.load(name)
    checkout = [*(["--peer", *folders] if folders else []), *more]
    words = dict.fromkeys(WITH_CHECKOUT, checkout)
    return {**words, "refinement": ["--peer", *named] if named else []}


def main() -> int:
    words = sys.argv[1:]
    cut = words.index("--") if "--" in words else len(words)
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--only", nargs="+", choices=list(SUITE), default=list(SUITE), metavar="NAME")
    parser.add_argument("--peer", nargs="+", default=[], metavar="PEER", help="DIR, ptychi, xptycho")
    space = parser.parse_args(words[:cut])
    for_peers = words_for_peers(space.peer, words[cut + 1 :])
    done = {name: run(name, for_peers.get(name, [])) for name in space.only}
    print()
    rows = [(name, f"{seconds:.0f}", code or "") for name, (code, seconds) in done.items()]
    common.print_table(("benchmark", "seconds", "exit code"), rows)
    print(f"{sum(seconds for _, seconds in done.values()):.0f} s in all")
    return int(any(code for code, _ in done.values()))


if __name__ == "__main__":
    raise SystemExit(main())
