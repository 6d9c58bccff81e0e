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

    @property
    def inner(self) -> float:
        """Seconds of the phase that Lightning ran."""
        return sum(self.phases.get(phase, 0.0) for phase in INNER)

    def weighs(self, seconds: float, share: float) -> bool:
        """Tell whether `seconds` are more than `share` of the whole, and worth a word at all."""
        return seconds >= WORTH_S and seconds > share * sum(self.phases.values())


def shares(times: Times) -> dict[str, float]:
    """Return the share of each phase, and of each part as `fit: load`, in the whole; 3 decimals."""
    whole = sum(times.phases.values()) or 1.0
    found: dict[str, float] = {}
    for phase, seconds in times.phases.items():
        found[phase] = round(seconds / whole, 3)
        if phase in INNER:
            parts = {**times.parts, "other": max(0.0, seconds - sum(times.parts.values()))}
            found |= {f"{INNER[phase]}: {part}": round(value / whole, 3) for part, value in parts.items()}
    return found


def advice(times: Times, settings: ExecutionSettings, facts: MachineFacts) -> str | None:
    """Return where the time went and the knob that would save most of it; None where none would help.

    Args:
        times: of the run that ended.
        settings: the effective settings of that run.
        facts: of the machine that it ran on.
    """
    found = sorted(_found(times, settings, facts), reverse=True)
    if not found:
        return None
    _, knob = found[0]
    told = [f"{name} {share:.0%}" for name, share in _largest(shares(times)) if share >= 0.05]
    return f"{', '.join(told)} of the time; {knob}"


def _largest(found: Mapping[str, float]) -> list[tuple[str, float]]:
    """Leave out a phase whose parts are there, and sort the rest by size."""
    split = {phase for phase, name in INNER.items() if any(key.startswith(f"{name}: ") for key in found)}
    return sorted(((k, v) for k, v in found.items() if k not in split), key=lambda row: -row[1])


def _found(times: Times, settings: ExecutionSettings, facts: MachineFacts) -> Iterator[tuple[float, str]]:
    """Yield seconds that a knob would act on, and the sentence about it."""
    for rule in (_loading, _idle_gpu, _idle_cores, _checkpoints, _pictures, _small_batches, _reading):
        yield from rule(times, settings, facts)


Found = Iterator[tuple[float, str]]


def _loading(times: Times, settings: ExecutionSettings, facts: MachineFacts) -> Found:
    load, spare = times.parts.get("load", 0.0), facts.usable_cpus - 1
    workers = settings.num_workers if isinstance(settings.num_workers, int) else spare
    if times.weighs(load, 0.15) and spare > workers:
        more = min(spare, max(1, 2 * workers), 8)
        yield load, f"num_workers={more} would load batches beside the computation"


def _idle_gpu(times: Times, settings: ExecutionSettings, facts: MachineFacts) -> Found:
    compute = times.parts.get("compute", 0.0)
    if facts.gpus and settings.accelerator == "cpu" and times.weighs(compute, 0.3):
        yield compute, f"accelerator=gpu would compute on the {facts.gpus[0].name}, which was idle"


def _idle_cores(times: Times, settings: ExecutionSettings, facts: MachineFacts) -> Found:
    compute, cpus, threads = times.parts.get("compute", 0.0), facts.usable_cpus, times.limited_threads
    if threads and settings.accelerator == "cpu" and 2 * threads <= cpus and times.weighs(compute, 0.5):
        text = f"num_threads={cpus} would use all CPUs, not {threads} (the last digits can change)"
        yield compute * (1 - threads / cpus), text


def _checkpoints(times: Times, settings: ExecutionSettings, facts: MachineFacts) -> Found:
    del facts
    spent = times.parts.get("checkpoint", 0.0)
    if not times.weighs(spent, 0.1):
        return
    if settings.checkpoint_save_top_k == 0:
        yield spent, "enable_checkpointing=false would save it, and give up resuming"
    else:
        yield spent / 2, "checkpoint_save_top_k=0 would write the last checkpoint only"


def _pictures(times: Times, settings: ExecutionSettings, facts: MachineFacts) -> Found:
    del facts
    spent, every = times.parts.get("pictures", 0.0), settings.log_images_every_n_epochs or 0
    if every and times.weighs(spent, 0.1):
        yield spent, f"log_images_every_n_epochs={10 * every} would send fewer pictures"


def _small_batches(times: Times, settings: ExecutionSettings, facts: MachineFacts) -> Found:
    """Time between the parts of a prediction is Lightning's, per batch."""
    del facts
    size = settings.inference_batch_size or settings.batch_size
    between = times.phases.get("predict and stitch", 0.0) - sum(times.parts.values())
    if "predict and stitch" in times.phases and size < 64 and times.weighs(between, 0.15):
        yield between, "inference_batch_size=64 would spend less between batches; the result stays the same"


def _reading(times: Times, settings: ExecutionSettings, facts: MachineFacts) -> Found:
    del settings, facts
    read = times.phases.get("read", 0.0)
    if times.source is not None and times.weighs(read, 0.3) and is_compressed(times.source):
        yield read, "`ptycho-torch convert --to npz` would write it uncompressed, which reads faster"


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
