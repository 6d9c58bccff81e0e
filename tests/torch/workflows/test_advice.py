"""The advice follows from measured shares alone: each rule speaks in its case, and none without cause."""

import re
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ptycho_exec.machine.facts import Gpu, MachineFacts
from ptycho_exec.settings import ExecutionSettings
from ptycho_torch.workflows.advice import Times, advice, limited_threads, shares

FACTS = MachineFacts(cpus_logical=8)
GPU = Gpu(name="H100", memory_mb=80000, capability="9.0", bf16=True)
FIT = {"read": 1.0, "prepare": 1.0, "fit": 100.0, "write": 1.0}
PREDICT = {"read": 1.0, "predict and stitch": 100.0}


def _advice(times: Times, facts: MachineFacts = FACTS, **settings: Any) -> str | None:
    return advice(times, ExecutionSettings.from_values({"accelerator": "cpu", **settings}), facts)


@pytest.mark.parametrize(
    ("times", "settings", "knob"),
    [
        (Times(FIT, {"load": 30, "compute": 60}), {}, "num_workers=1 would"),
        (Times(FIT, {"load": 30, "compute": 60}), {"num_workers": 2}, "num_workers=4 would"),
        (Times(PREDICT, {"load": 30, "compute": 60}), {}, "num_workers=1 would"),
        (Times(FIT, {"compute": 90}, limited_threads=2), {}, "num_threads=8 would use all CPUs, not 2"),
        (Times(FIT, {"compute": 70, "checkpoint": 25}), {}, "checkpoint_save_top_k=0"),
        (
            Times(FIT, {"compute": 70, "checkpoint": 25}),
            {"checkpoint_save_top_k": 0},
            "enable_checkpointing=false",
        ),
        (
            Times(FIT, {"compute": 70, "images": 25}),
            {"log_images_every_n_epochs": 1},
            "log_images_every_n_epochs=10",
        ),
        (Times(PREDICT, {"compute": 70}), {"inference_batch_size": 4}, "inference_batch_size=64"),
    ],
)
def test_the_knob_that_would_help(times: Times, settings: dict[str, Any], knob: str) -> None:
    said = _advice(times, **settings)
    assert said is not None
    assert knob in said


@pytest.mark.parametrize(
    ("times", "settings"),
    [
        (Times(FIT, {"load": 4, "compute": 95}), {}),
        (Times({"fit": 2.0}, {"load": 1.5, "compute": 0.5}), {}),
        (Times(FIT, {"load": 30, "compute": 60}), {"num_workers": 7}),
        (Times(FIT, {"compute": 98}, limited_threads=6), {}),
        (Times(PREDICT, {"compute": 70}), {"inference_batch_size": 128}),
        (Times({}, {}), {}),
    ],
)
def test_nothing_is_said_where_nothing_helps(times: Times, settings: dict[str, Any]) -> None:
    assert _advice(times, **settings) is None


def test_an_idle_gpu_is_told_before_idle_cores() -> None:
    facts = MachineFacts(cpus_logical=8, gpus=(GPU,))
    said = _advice(Times(FIT, {"compute": 90}, limited_threads=1), facts)
    assert said is not None
    assert "accelerator=gpu would compute on the H100" in said


@pytest.mark.parametrize(("batch", "acts"), [(8, True), (64, False)])
def test_a_gpu_has_room_for_larger_batches(batch: int, acts: bool) -> None:
    facts = MachineFacts(cpus_logical=8, gpus=(GPU,))
    said = _advice(Times(FIT, {"compute": 90}), facts, accelerator="cuda", batch_size=batch)
    assert ("batch_size=64 would take 8 times the patterns" in (said or "")) is acts
    assert _advice(Times(PREDICT, {"compute": 90}), facts, accelerator="cuda", batch_size=batch) is None


def test_the_line_says_where_the_time_went() -> None:
    said = _advice(Times(FIT, {"load": 30, "compute": 60}))
    assert said is not None
    assert re.match(r"fit: compute 58%, fit: load 29%, fit: other 10% of the time; num_workers", said)


def test_shares_add_up() -> None:
    found = shares(Times(FIT, {"load": 30, "compute": 60}))
    assert sum(share for name, share in found.items() if name in FIT) == pytest.approx(1, abs=0.002)
    inner = sum(share for name, share in found.items() if name.startswith("fit: "))
    assert inner == pytest.approx(found["fit"], abs=0.002)


@pytest.mark.parametrize(("method", "told"), [(zipfile.ZIP_DEFLATED, True), (zipfile.ZIP_STORED, False)])
def test_only_a_compressed_file_is_worth_converting(tmp_path: Path, method: int, told: bool) -> None:
    file = tmp_path / "scan.npz"
    with zipfile.ZipFile(file, "w", method) as archive:
        archive.writestr("x.npy", np.zeros(100).tobytes())
    said = _advice(Times({"read": 60.0, "fit": 40.0}, {"compute": 40}, source=file))
    assert (said is not None and "convert" in said) is told


@pytest.mark.parametrize(
    ("variable", "field", "threads"), [("2", None, 2), ("2", 3, 3), ("", None, None), ("4,2", None, None)]
)
def test_threads_that_the_user_limited(
    monkeypatch: pytest.MonkeyPatch, variable: str, field: int | None, threads: int | None
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", variable)
    assert limited_threads(ExecutionSettings.from_values({"num_threads": field})) == threads
