"""One trial of `ptycho-torch tune`, which starts this as a program: a few seconds of real work, measured.

Training goes through the workflow with everything that writes switched off; an inference predicts and
stitches some patterns of the scan. The answer is a line of JSON after `MARK`.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

MARK = "TRIAL "
INFERENCE_PATTERNS = 512
"""At most so many patterns of the scan are predicted, twice; the first time is a warm-up."""


def train(request: Mapping[str, Any], scan: Any, science: Any) -> float | None:
    """Return patterns per second of training, without the first step; None when there was no second one."""
    from ptycho_torch.workflows import components

    results = components._train_with_lightning(scan, None, science, _settings(request))
    trainer = results["models"]["trainer"]
    rate = next(cb.samples_per_second for cb in trainer.callbacks if hasattr(cb, "samples_per_second"))
    return None if rate is None else rate * science.data.gridsize**2


def infer(request: Mapping[str, Any], scan: Any, science: Any) -> float:
    """Return patterns per second of prediction and stitching with a network that was never trained."""
    import numpy as np

    from ptycho_torch.workflows import components

    settings = _settings(request)
    part = scan.subset(np.arange(min(INFERENCE_PATTERNS, len(scan))))
    from ptycho_torch.data.containers import dataset_of

    dataset = dataset_of(part, science.data, settings.seed)
    module = components._build_module(part, dataset, science, settings).eval()
    for _ in range(2):
        start = time.perf_counter()
        components.run_inference_with_lightning(module, part, science, settings)
    return len(part) / (time.perf_counter() - start)


def _settings(request: Mapping[str, Any]) -> Any:
    from ptycho_exec.settings import ExecutionSettings

    return ExecutionSettings.from_values(request["settings"], place="ptycho-torch tune")


def peak_mib() -> float:
    """Return the largest resident memory of this process so far, and of its loader processes, in MiB."""
    status = Path("/proc/self/status")  # resource would count the memory of the process that started this one
    own = next((float(line.split()[1]) / 2**10 for line in _lines(status) if line.startswith("VmHWM")), None)
    unit = 2**20 if sys.platform == "darwin" else 2**10
    if own is None:
        own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit
    return own + _workers_mib(unit)


def _workers_mib(unit: int) -> float:
    return resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / unit


def _lines(path: Path) -> Sequence[str]:
    return path.read_text().splitlines() if path.is_file() else ()


def gpu_peak_mib() -> float:
    """Return the largest memory that torch held on the GPU, in MiB; 0 without one."""
    import torch

    return torch.cuda.max_memory_allocated() / 2**20 if torch.cuda.is_available() else 0.0


def main(argv: Sequence[str] | None = None) -> int:
    """Do the trial that a file asks for, and print what came of it."""
    (name,) = sys.argv[1:] if argv is None else argv
    request = json.loads(Path(name).read_text())
    from ptycho_torch.quick_start import import_lightning

    import_lightning()
    from ptycho_exec.errors import UserError
    from ptycho_torch.config import ScienceConfig
    from ptycho_torch.data.read import read_scan

    science = ScienceConfig.model_validate(request["science"])
    try:
        scan = read_scan(request["scan"], science.data)
        rate = (train if request["task"] == "train" else infer)(request, scan, science)
    except UserError as error:
        first = error.findings[0]
        print(MARK + json.dumps({"error": f"{first.what}: {first.where}" if first.where else first.what}))
        return 0
    found = {"patterns_per_s": rate, "peak_mib": peak_mib(), "gpu_peak_mib": gpu_peak_mib()}
    print(MARK + json.dumps(found))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
