"""Start-up: from process start to the first optimizer step, and to the first reconstructed object on disk.

The real commands run as processes, several times in turn. The end of the first step is what the run's
manifest says; an object is there when its file is. Processor seconds change little on a busy machine.

    python benchmarks/startup.py [--rounds 3] [--peer DIR]
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import common
import peer

TARGET = 0.45
"""Of the peer's time to its first step, ours is to be at most this part."""


class Start(NamedTuple):
    """Wall seconds to the event, and processor and wall seconds of the whole process."""

    event_s: float
    cpu_s: float
    wall_s: float


def show(folder: Path, scan: Path) -> Start:
    """`ptycho-exec show`, to its end."""
    del folder, scan
    child = common.run([sys.executable, "-m", "ptycho_exec", "show"]).check()
    return Start(child.wall_s, child.cpu_s, child.wall_s)


def first_step(folder: Path, scan: Path) -> Start:
    """`ptycho-torch train`, to the end of the first optimizer step."""
    words = ["train", str(scan), "--out", str(folder / "run"), "--fast-dev-run", "1"]
    child = common.run([sys.executable, "-m", "ptycho_torch", *words]).check()
    manifest = json.loads((folder / "run" / "manifest.json").read_text())
    return Start(manifest["first_step_at"] - child.began_at, child.cpu_s, child.wall_s)


def network_object(folder: Path, scan: Path) -> Start:
    """`ptycho-torch infer` with a network, to the written object."""
    return _object(folder / "network", ["infer", str(folder / "run"), str(scan)])


def flat_object(folder: Path, scan: Path) -> Start:
    """`ptycho-torch infer --start flat --refine 10`, to the written object."""
    return _object(folder / "flat", ["infer", str(scan), "--start", "flat", "--refine", "10"])


def _object(out: Path, words: list[str]) -> Start:
    child = common.run([sys.executable, "-m", "ptycho_torch", *words, "--out", str(out)]).check()
    written = (out / "reconstruction.npz").stat().st_mtime
    return Start(written - child.began_at, child.cpu_s, child.wall_s)


EVENTS: dict[str, Callable[[Path, Path], Start]] = {
    "settings shown": show,
    "first optimizer step": first_step,
    "first object, network": network_object,
    "first object, flat start and 10 epochs": flat_object,
}


def measure(scan: Path, rounds: int, other: peer.Peer) -> tuple[dict[str, list[Start]], list[float]]:
    """Return our starts by event, and the peer's seconds to its first step, taken in turn."""
    taken: dict[str, list[Start]] = {name: [] for name in EVENTS}
    theirs: list[float] = []
    for _ in range(rounds):
        with tempfile.TemporaryDirectory(prefix="startup_") as name:
            folder = Path(name)
            for event, call in EVENTS.items():
                taken[event].append(call(folder, scan))
            run = other.train(scan, folder / "peer", batch=16, patterns=64)
            if run is not None and run.first_step_s is not None:
                theirs.append(run.first_step_s)
    return taken, theirs


def main() -> int:
    parser = common.arguments(__doc__)
    peer.add_arguments(parser)
    space = parser.parse_args()
    other = peer.Peer(space)
    with tempfile.TemporaryDirectory(prefix="startup_scan_") as folder:
        taken, theirs = measure(common.scan_file(space.scan, Path(folder)), space.rounds, other)
    common.print_machine()
    columns = {
        event: {field: common.spread(getattr(start, field) for start in starts) for field in Start._fields}
        for event, starts in taken.items()
    }
    rows: list[tuple[object, ...]] = [
        (event, row["event_s"], row["cpu_s"], row["wall_s"]) for event, row in columns.items()
    ]
    if theirs:
        rows.append(("the peer's first step", common.spread(theirs), "", ""))
    common.print_table(("from process start to", "seconds", "cpu s of all", "seconds of all"), rows)
    ratio = None
    if len(theirs) == space.rounds:
        ratio = common.ratios(theirs, [start.event_s for start in taken["first optimizer step"]])
        print(f"first step: {ratio} of the peer's time; at most {TARGET} is asked")
    if other.note:
        print(other.note)
    results = {"ours": columns, "peer_first_step_s": theirs, "ratio_to_peer": ratio}
    common.write_json("startup", results, space.json)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
