"""One trial of `ptycho-torch tune`, which starts this as a program: a few seconds of real work, measured.

Training goes through the workflow with everything that writes switched off; an inference predicts and
stitches some patterns of the scan. The answer is a line of JSON after `MARK`.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

MARK = "TRIAL "
INFERENCE_PATTERNS = 512
"""At most so many patterns of the scan are predicted, twice; the first time is a warm-up."""


def train(scan: Any, science: Any, settings: Any) -> float | None:
    """Return patterns per second of training, without the first step; None when there was no second one."""
    from ptycho_torch.workflows import components

    rate = components.train(scan, None, science, settings).samples_per_second
    return None if rate is None else rate * science.data.gridsize**2


def infer(scan: Any, science: Any, settings: Any) -> float:
    """Return patterns per second of prediction and stitching with a network that was never trained."""
    import numpy as np

    from ptycho_torch.data.containers import dataset_of
    from ptycho_torch.workflows import components

    part = scan.subset(np.arange(min(INFERENCE_PATTERNS, len(scan))))
    samples = dataset_of(part, science.data, settings.seed)
    module = components.build_module(part, samples, science, settings).eval()
    inference = components.plan_inference(module, part, science, settings)
    for _ in range(2):
        start = time.perf_counter()
        components.run_inference(inference)
    return len(part) / (time.perf_counter() - start)


def without_searches(scan: Any, science: Any) -> tuple[Any, Any]:
    """Return scan and science such that nothing is looked for: speed does not depend on what is found."""
    from ptycho_torch.reconstruction.probe_estimate import curved_probes, mean_amplitude

    if scan.probe is None:
        _, probe, _ = curved_probes(mean_amplitude(scan), None)[0]
        scan = replace(scan, probe=probe)
    as_it_is = science.data.model_copy(update={"probe": "file", "orient": "none"})
    return scan, science.model_copy(update={"data": as_it_is})


def peak_mib() -> float:
    """Return the largest resident memory of this process and of its loaders, in MiB; 0 where unknown."""
    try:
        import resource
    except ImportError:  # Windows does not report it
        return 0.0
    unit = 2**20 if sys.platform == "darwin" else 2**10
    loaders, status = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / unit, Path("/proc/self/status")
    # The usage that resource reports would count the memory of the process that started this one.
    lines = status.read_text("utf-8").splitlines() if status.is_file() else ()
    own = next((float(line.split()[1]) / 2**10 for line in lines if line.startswith("VmHWM")), None)
    return loaders + (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit if own is None else own)


def gpu_peak_mib() -> float:
    """Return the largest memory that torch held on the GPU, in MiB; 0 without one."""
    import torch

    return torch.cuda.max_memory_allocated() / 2**20 if torch.cuda.is_available() else 0.0


def main(argv: Sequence[str] | None = None) -> int:
    """Run the trial that a file describes, and print its result."""
    from ptycho_torch.quick_start import import_lightning

    (name,) = sys.argv[1:] if argv is None else argv
    request = json.loads(Path(name).read_text("utf-8"))
    import_lightning()
    from ptycho_exec.errors import UserError
    from ptycho_exec.settings import ExecutionSettings
    from ptycho_torch.config import ScienceConfig
    from ptycho_torch.data.judge import lines
    from ptycho_torch.data.read import read_scan

    science = ScienceConfig.model_validate(request["science"])
    settings = ExecutionSettings.from_values(request["settings"], place="ptycho-torch tune")
    result: dict[str, Any]
    try:
        scan, science = without_searches(read_scan(request["scan"], science.data), science)
        rate = (train if request["task"] == "train" else infer)(scan, science, settings)
        result = {
            "odd": lines(scan),
            "patterns_per_s": rate,
            "peak_mib": peak_mib(),
            "gpu_peak_mib": gpu_peak_mib(),
        }
    except UserError as error:
        result = {"error": ": ".join(filter(None, (error.findings[0].what, error.findings[0].where)))}
    print(MARK + json.dumps(result))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
