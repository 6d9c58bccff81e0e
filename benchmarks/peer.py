"""A checkout of upstream PtychoPINN, run as its users run it, on the same files and in the same session.

Nothing of it is imported here: its two commands are started as processes, with the checkout first on the
path, and a hook of torch's notes when its optimizer steps. What fails is told and left out.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import common

TRAIN = (
    "ptycho_torch.train --train_data_file {scan} --test_data_file {scan} --output_dir {out} "
    "--max_epochs {epochs} --n_images {patterns} --gridsize {gridsize} --batch_size {batch} --accelerator cpu"
)
INFER = (
    "ptycho_torch.inference --model_path {model} --test_data {scan} --output_dir {out} "
    "--n_images {patterns} --accelerator cpu"
)
_DRIVER = """
import atexit, json, os, runpy, sys, time
directory, report, module, *words = sys.argv[1:]
sys.path.insert(0, directory)
from torch.optim.optimizer import register_optimizer_step_post_hook
class Steps:
    first = last = None
    count = 0
def stepped(*_):
    Steps.last = time.time()
    Steps.first = Steps.first or Steps.last
    Steps.count += 1
register_optimizer_step_post_hook(stepped)
def tell():
    with open(report, "w") as file:
        json.dump({"first_at": Steps.first, "last_at": Steps.last, "steps": Steps.count}, file)
atexit.register(tell)
sys.argv = [module, *words]
runpy.run_module(module, run_name="__main__", alter_sys=True)
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add `--peer` and what may differ between its versions."""
    group = parser.add_argument_group("upstream PtychoPINN beside ours")
    group.add_argument(
        "--peer", type=Path, metavar="DIR", help="a checkout of it; without it ours runs alone"
    )
    group.add_argument("--peer-python", default=sys.executable, metavar="FILE", help="Python that it runs in")
    group.add_argument("--peer-train", default=TRAIN, metavar="WORDS", help=f"its training [{TRAIN}]")
    group.add_argument("--peer-infer", default=INFER, metavar="WORDS", help=f"its inference [{INFER}]")
    group.add_argument("--peer-timeout", type=float, default=600.0, metavar="SECONDS", help="at most [600]")


@dataclass(frozen=True)
class PeerRun:
    """A run of the peer: the process, seconds to its first optimizer step, its optimizer steps per second."""

    child: common.Child
    first_step_s: float | None
    steps_per_s: float | None


@dataclass
class Peer:
    """What the flags say about the peer; `note` tells why there is no figure of it."""

    space: argparse.Namespace
    note: str = ""

    @property
    def there(self) -> bool:
        """Tell whether there is a checkout, and say why not if one was named."""
        named = self.space.peer
        if named is not None and not (named / "ptycho_torch").is_dir():
            self.note = f"no peer: {named} holds no package ptycho_torch"
        return named is not None and not self.note

    def train(self, scan: Path, out: Path, *, batch: int, patterns: int, gridsize: int = 1) -> PeerRun | None:
        """Train one epoch; None, with a note, when it fails."""
        return self._run(
            self.space.peer_train,
            {
                "scan": scan,
                "out": out,
                "epochs": 1,
                "patterns": patterns,
                "gridsize": gridsize,
                "batch": batch,
            },
        )

    def infer(self, model: Path, scan: Path, out: Path, *, patterns: int) -> PeerRun | None:
        """Reconstruct with what `train` left; None, with a note, when it fails."""
        return self._run(
            self.space.peer_infer, {"model": model, "scan": scan, "out": out, "patterns": patterns}
        )

    def _run(self, template: str, values: dict[str, object]) -> PeerRun | None:
        if not self.there:
            return None
        words = [word.format(**values) for word in shlex.split(template)]
        with tempfile.TemporaryDirectory(prefix="peer_") as folder:
            report = Path(folder) / "steps.json"
            head = [self.space.peer_python, "-c", _DRIVER, str(self.space.peer.resolve()), str(report)]
            child = common.run([*head, *words], cwd=Path(folder), timeout_s=self.space.peer_timeout)
            found = json.loads(report.read_text()) if report.is_file() else {}
        if child.code:
            end = " | ".join(child.output.strip().splitlines()[-3:])
            self.note = f"the peer failed with exit code {child.code} after {child.wall_s:.0f} s: {end}"
            return None
        return _peer_run(child, found)


def _peer_run(child: common.Child, found: dict[str, float]) -> PeerRun:
    first, last, steps = found.get("first_at"), found.get("last_at"), found.get("steps") or 0
    if first is None or last is None:
        return PeerRun(child, None, None)
    return PeerRun(child, first - child.began_at, (steps - 1) / (last - first) if last > first else None)
