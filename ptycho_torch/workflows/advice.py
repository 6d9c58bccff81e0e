"""From measured shares to one line: where the time of a run went, and which knob would help, if one would."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from ptycho_exec.machine.facts import MachineFacts
from ptycho_exec.settings import ExecutionSettings

INNER = {"fit": "fit", "predict and stitch": "predict"}
"""Phase that Lightning runs -> what its parts are called by."""
FILLS_GPU = 64
"""Samples of a batch up to which a training step takes as long on a GPU as with one."""
WORTH_S = 3.0
"""Less than this is not worth a word, however large its share."""


class Times(NamedTuple):
    """Wall seconds of a run.

    Attributes:
        phases: phase -> seconds, one after the other: read, prepare, fit, write ...
        parts: part of the phase that Lightning ran -> seconds: load, compute, checkpoint ...
        limited_threads: threads of one CPU operation where the user set them; None where torch chose.
        source: the file of the scan.
    """

    phases: Mapping[str, float]
    parts: Mapping[str, float]
    limited_threads: int | None = None
    source: Path | None = None

    def weighs(self, seconds: float, share: float) -> bool:
        """Tell whether `seconds` are more than `share` of the whole, and worth a word at all."""
        return seconds >= WORTH_S and seconds > share * sum(self.phases.values())


def shares(times: Times) -> dict[str, float]:
    """Return the share of each phase, and of each part as `fit: load`, in the whole; 3 decimals."""
    whole = sum(times.phases.values()) or 1.0
    rounded: dict[str, float] = {}
    for phase, seconds in times.phases.items():
        rounded[phase] = round(seconds / whole, 3)
        if phase in INNER:
            parts = {**times.parts, "other": max(0.0, seconds - sum(times.parts.values()))}
            rounded |= {f"{INNER[phase]}: {part}": round(value / whole, 3) for part, value in parts.items()}
    return rounded


def advice(times: Times, settings: ExecutionSettings, facts: MachineFacts) -> str | None:
    """Return where the time went and the knob that would save most of it; None where none would help.

    Args:
        times: of the run that ended.
        settings: the effective settings of that run.
        facts: of the machine that it ran on.
    """
    acting = [
        row for row in knobs(times, settings, facts) if row.acts and times.weighs(row.seconds, row.share)
    ]
    if not acting:
        return None
    best = max(acting, key=lambda row: row.saved)
    found = shares(times)
    split = {phase for phase, name in INNER.items() if any(key.startswith(f"{name}: ") for key in found)}
    largest = sorted(((k, v) for k, v in found.items() if k not in split), key=lambda row: -row[1])
    listed = ", ".join(f"{name} {share:.0%}" for name, share in largest if share >= 0.05)
    return f"{listed} of the time; {best.sentence}"


class Knob(NamedTuple):
    """A knob that saves time where it `acts` and its `seconds` weigh more than `share` of the whole."""

    acts: bool
    seconds: float
    share: float
    saved: float
    sentence: str


def knobs(times: Times, settings: ExecutionSettings, facts: MachineFacts) -> Iterator[Knob]:
    """Yield every knob, with the seconds that it is about and those that it would save."""
    load, compute, write, images = (
        times.parts.get(part, 0.0) for part in ("load", "compute", "checkpoint", "images")
    )
    on_cpu, cpus, threads = settings.accelerator == "cpu", facts.usable_cpus, times.limited_threads
    workers = settings.num_workers if isinstance(settings.num_workers, int) else cpus - 1
    more = min(cpus - 1, max(1, 2 * workers), 8)
    text = f"num_workers={more} would load batches beside the computation"
    yield Knob(cpus - 1 > workers, load, 0.15, load, text)
    gpu = facts.gpus[0].name if facts.gpus else ""
    text = f"accelerator=gpu would compute on the {gpu}, which was idle"
    yield Knob(bool(gpu) and on_cpu, compute, 0.3, compute, text)
    batch = settings.batch_size
    wider = f"batch_size={FILLS_GPU} would take {FILLS_GPU // batch} times the patterns in a step as long"
    text = f"{wider} on a GPU (another result: fewer steps per epoch, so give more epochs)"
    small = settings.accelerator in ("gpu", "cuda") and 2 * batch <= FILLS_GPU and "fit" in times.phases
    yield Knob(small, compute, 0.5, compute * (1 - batch / FILLS_GPU), text)
    text = f"num_threads={cpus} would use all CPUs, not {threads} (the last digits can change)"
    idle = bool(threads) and on_cpu and 2 * (threads or 0) <= cpus
    yield Knob(idle, compute, 0.5, compute * (1 - (threads or 0) / cpus), text)
    last_only = settings.checkpoint_save_top_k == 0
    text = "enable_checkpointing=false would save it, and give up resuming"
    yield Knob(last_only, write, 0.1, write, text)
    yield Knob(
        not last_only, write, 0.1, write / 2, "checkpoint_save_top_k=0 would write the last checkpoint only"
    )
    every = settings.log_images_every_n_epochs or 0
    text = f"log_images_every_n_epochs={10 * every} would send fewer images"
    yield Knob(every > 0, images, 0.1, images, text)
    # Time between the parts of a prediction is Lightning's, per batch.
    between = times.phases.get("predict and stitch", 0.0) - sum(times.parts.values())
    small = (settings.inference_batch_size or settings.batch_size) < 64
    text = "inference_batch_size=64 would spend less between batches; the result stays the same"
    yield Knob(small and "predict and stitch" in times.phases, between, 0.15, between, text)
    read, compressed = times.phases.get("read", 0.0), times.source is not None and is_compressed(times.source)
    text = "`ptycho-torch convert --to npz` would write it uncompressed, which reads faster"
    yield Knob(compressed, read, 0.3, read, text)


def is_compressed(scan_file: Path) -> bool:
    """Tell whether a file is an NPZ with compressed arrays."""
    if not scan_file.is_file() or not zipfile.is_zipfile(scan_file):
        return False
    with zipfile.ZipFile(scan_file) as archive:
        return any(member.compress_type != zipfile.ZIP_STORED for member in archive.infolist())


def limited_threads(settings: ExecutionSettings) -> int | None:
    """Return the number of threads to which settings or OMP_NUM_THREADS hold a CPU operation, if any."""
    variable = os.environ.get("OMP_NUM_THREADS", "")
    return settings.num_threads or (int(variable) if variable.isdecimal() and int(variable) else None)
