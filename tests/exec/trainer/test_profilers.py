"""The profiler of the settings writes into the run directory, beside the caller's."""

from __future__ import annotations

from pathlib import Path

import pytest
from lightning.pytorch.profilers import SimpleProfiler

from ptycho_exec.trainer.build import build_trainer, process_flags
from ptycho_exec.trainer.profilers import KINDS
from tests.exec.trainer.linear_runs import Linear, loader, plan_of, rows, settings


@pytest.mark.acts("profiler", "files in `profile/`")
@pytest.mark.parametrize("word", KINDS)
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning")
def test_each_profiler_writes_its_report(word: str, tmp_path: Path) -> None:
    wanted = settings(profiler=word)
    plan, own = plan_of(wanted), SimpleProfiler()
    with process_flags(wanted):
        trainer = build_trainer(wanted, max_epochs=1, run_dir=tmp_path, plan=plan, profiler=own)
        trainer.fit(Linear(), loader(wanted, plan), loader(wanted, plan))
    assert rows(trainer)["profile"].verdict == rows(trainer)["profiler"].verdict == "same"
    assert own.recorded_durations["run_training_batch"]
    written = [path for path in (tmp_path / "profile").iterdir() if path.stat().st_size]
    assert written
    assert all(word in path.name for path in written)


def test_without_the_setting_there_is_no_folder(tmp_path: Path) -> None:
    wanted = settings()
    with process_flags(wanted):
        build_trainer(wanted, max_epochs=1, run_dir=tmp_path, plan=plan_of(wanted)).fit(
            Linear(), loader(wanted)
        )
    assert not (tmp_path / "profile").exists()
