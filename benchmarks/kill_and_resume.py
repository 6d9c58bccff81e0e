"""Kill real trainings at random optimizer steps, resume them, and compare every bit with uninterrupted ones.

    python benchmarks/kill_and_resume.py [--kills 20] [--seed 0]

Each row: `ptycho-torch train` in a process of its own, killed by SIGTERM, SIGINT or SIGKILL as soon as it
reports a randomly drawn optimizer step; whatever bears a finished file's name must be whole; `--resume`
must end with the weights, optimizer, scheduler and epoch of the uninterrupted training. Accumulation,
loader workers and schedulers vary. Exits with 1 unless all are equal.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import torch

from ptycho_exec.record import read_manifest
from ptycho_torch.workflows.artifacts import model_weights_sha256

CONFIGURATIONS: dict[str, tuple[str, ...]] = {
    "plain": (),
    "accumulation": ("--accum-steps=3",),
    "workers": ("--num-workers=1",),
    "workers, accumulation": ("--num-workers=1", "--accum-steps=3", "--scheduler=ReduceLROnPlateau"),
    "validation, persistent": ("--num-workers=1", "--persistent-workers", "--val-fraction=0.2"),
}
COMMON = ("--epochs=6", "--batch-size=4", "--n-filters=4", "--depth=1", "--checkpoint-save-top-k=2")
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGKILL)
COMPARED = ("state_dict", "optimizer_states", "lr_schedulers", "epoch", "global_step")

# The command as installed, with one line on standard error per optimizer step for the killer to see.
REPORTING = """
import os, sys
from ptycho_torch import model
step = model.PtychoPINN_Lightning.on_before_optimizer_step
def reporting(self, optimizer):
    os.write(2, b"STEP\\n")
    step(self, optimizer)
model.PtychoPINN_Lightning.on_before_optimizer_step = reporting
from ptycho_torch.cli import main
sys.exit(main(sys.argv[1:]))
"""


class Outcome(NamedTuple):
    """What became of one kill."""

    signal: str
    configuration: str
    step: int
    status: int
    resumed_from: str
    faults: tuple[str, ...]


def main() -> int:
    """Run all kills and print a row for each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    draw = random.Random(asked.seed)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        scan = folder / "scan.npz"
        run(["simulate", "--out", str(scan), "--n=32", "--patterns=48", "--photons=1e5"])
        whole = {name: reference(scan, folder, name) for name in CONFIGURATIONS}
        names, found = list(CONFIGURATIONS), []
        for number in range(asked.kills):
            name, how = names[number % len(names)], SIGNALS[number % len(SIGNALS)]
            steps = draw.randrange(1, whole[name][1] - 2)
            found.append(one_kill(scan, folder / f"kill{number}", name, how, steps, whole[name][0]))
            show(number + 1, found[-1])
    equal = sum(not outcome.faults for outcome in found)
    print(f"{equal} of {asked.kills} resumed to the bits of the uninterrupted training")
    return int(equal != asked.kills)


def show(number: int, outcome: Outcome) -> None:
    result = "; ".join(outcome.faults) or "equal"
    print(
        f"{number:3d}  {outcome.signal:8} {outcome.configuration:24} step {outcome.step:3d}  "
        f"status {outcome.status:4d}  from {outcome.resumed_from:12} {result}",
        flush=True,
    )


def command(words: list[str]) -> list[str]:
    return [sys.executable, "-c", REPORTING, *words]


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1"}


def run(words: list[str]) -> None:
    subprocess.run(command(words), check=True, capture_output=True, env=environment())


def training(scan: Path, out: Path, name: str) -> list[str]:
    return ["train", str(scan), "--out", str(out), *COMMON, *CONFIGURATIONS[name]]


def reference(scan: Path, folder: Path, name: str) -> tuple[Path, int]:
    """Train without interruption; return the run and its optimizer steps."""
    out = folder / name.replace(", ", "-")
    run(training(scan, out, name))
    return out, int(read_manifest(out)["trained"]["optimizer_steps"])


def one_kill(scan: Path, folder: Path, name: str, how: signal.Signals, step: int, whole: Path) -> Outcome:
    """Train, kill at the step, look at what is left, resume, compare."""
    part, rest = folder / "part", folder / "rest"
    status = train_until(training(scan, part, name), step, how)
    faults = unfinished(part)
    last = part / "checkpoints" / "last.ckpt"
    resumed = ["--resume", str(part)] if last.exists() else []
    run([*training(scan, rest, name), *resumed])
    faults += differences(whole, rest)
    origin = f"epoch {torch.load(last, weights_only=True)['epoch'] + 1}" if last.exists() else "the start"
    return Outcome(how.name, name, step, status, origin, tuple(faults))


def train_until(words: list[str], step: int, how: signal.Signals) -> int:
    """Start a training, send the signal when it reports the step, and return its exit status."""
    with subprocess.Popen(
        command(words),
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        # A shell that runs this in the background makes its children ignore SIGINT.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as child:
        assert child.stderr is not None
        seen = 0
        for line in child.stderr:
            seen += line.strip() == b"STEP"
            if seen == step:
                child.send_signal(how)
                seen += 1  # once is enough
        return child.wait()


def unfinished(part: Path) -> list[str]:
    """Return what bears a finished file's name and is not whole, or claims a run that did not end."""
    faults = [f"{name} exists" for name in ("model.ckpt", "loss.png") if (part / name).exists()]
    for path in (part / "checkpoints").glob("[!.]*"):
        try:
            torch.load(path, weights_only=True)
        except Exception as error:  # whatever torch says about half a file
            faults.append(f"{path.name} is not whole: {type(error).__name__}")
    status = read_manifest(part)["status"]
    return faults + ([f"the manifest says {status}"] if status == "completed" else [])


def differences(whole: Path, rest: Path) -> list[str]:
    """Return which parts of two finished trainings differ in any bit."""
    faults = []
    if model_weights_sha256(whole) != model_weights_sha256(rest):
        faults.append("weights differ")
    one, other = (torch.load(run / "checkpoints" / "last.ckpt", weights_only=True) for run in (whole, rest))
    faults += [f"{part} differ" for part in COMPARED if not equal(one[part], other[part])]
    return faults


def equal(one: Any, other: Any) -> bool:
    """Compare nested plain data and tensors, bit for bit."""
    if isinstance(one, torch.Tensor):
        return isinstance(other, torch.Tensor) and torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(equal(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(equal, one, other))
    return bool(one == other)


if __name__ == "__main__":
    sys.exit(main())
