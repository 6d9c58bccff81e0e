"""The benchmarks measure a tiny scan for real, and their rows say what they should."""

import argparse
import sys
from pathlib import Path

import pytest

from ptycho_exec.settings import ExecutionSettings
from ptycho_torch.config import DataConfig, ModelConfig, ScienceConfig, TrainingConfig
from ptycho_torch.data.read import read_scan
from ptycho_torch.factory import create_pretraining_payload, create_training_payload
from ptycho_torch.simulate import save, simulate_scan
from ptycho_torch.workflows import runs

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def scan_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(simulate_scan(n=32, patterns=64, seed=0), tmp_path_factory.mktemp("bench") / "scan.npz")


def test_training(scan_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import training

    scan = read_scan(scan_file, DataConfig())
    space = argparse.Namespace(batch_sizes=[4], gridsizes=[2], rounds=1, seconds=0.2)
    (row,) = training.throughput(scan, space)
    assert row["patterns_per_s"].median > 0
    assert row["flop_per_pattern"] > 1e6
    assert 0 < row["part_of_peak"].median < 1
    assert 0 < row["loader_share"].median < 0.5
    training.print_rows([row])
    assert "2, 4" in capsys.readouterr().out


def test_flops_do_not_depend_on_the_batch(scan_file: Path) -> None:
    import training

    scan = read_scan(scan_file, DataConfig())
    counts = [training.fit(scan, batch=b, gridsize=1, steps=2).flop_per_pattern for b in (2, 8)]
    assert counts[0] == pytest.approx(counts[1], rel=0.05)


def test_quality(scan_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import quality

    scan = read_scan(scan_file, DataConfig())
    space = argparse.Namespace(marks=[0.5], gridsize=1, refine=2, own_runs=False, flat_epochs=[3])
    points = quality.measure(scan, space)
    methods = ["network", "network + 2 epochs of refinement", "flat start, 3 epochs of refinement"]
    assert [point.method for point in points] == methods
    assert all(point.seconds > 0 and point.scores["nrmse"] > 0 for point in points)
    quality.print_points(points)
    assert "amplitude SSIM" in capsys.readouterr().out


def test_dose_and_overlap(scan_file: Path, tmp_path: Path) -> None:
    import dose_and_overlap

    quiet = {"enable_progress_bar": False, "logger_backend": None, "limit_train_batches": 2}
    small = ScienceConfig(model=ModelConfig(n_filters=4, depth=1), training=TrainingConfig(epochs=1))
    beam = runs.train(
        create_pretraining_payload(scan_file, tmp_path / "beam", (1e3, 1e6), quiet, science=small)
    )
    words = [
        "--scan",
        str(scan_file),
        "--photons",
        "1e5",
        "--patterns",
        "64",
        "--seeds",
        "1",
        "--refine",
        "2",
    ]
    space = dose_and_overlap.parser().parse_args([*words, "--epochs", "0", "--beam", str(beam.folder)])
    (case,) = dose_and_overlap.cases(space)
    assert case.refine > 300  # as many as 64 patterns take
    rows = {row["method"]: row for row in dose_and_overlap.measure(case._replace(refine=3))}
    methods = ["iteration", "iteration+denoise", "beam", "beam+refine"]
    assert list(rows) == [*methods, *(f"{method} new" for method in methods)]
    assert all(row["nrmse"] > 0 for row in rows.values())
    assert rows["beam"]["nrmse"] != rows["beam+refine"]["nrmse"]
    assert len(list(dose_and_overlap.table(list(rows.values())))) == len(rows)


def test_settings_share(scan_file: Path, tmp_path: Path) -> None:
    import settings_share

    from ptycho_exec import plan

    before = plan.resolve_plan
    meter, wall = settings_share.train(scan_file, tmp_path / "run", 1)
    assert set(settings_share.TIMED) == meter.seconds.keys()
    assert 0 < sum(meter.seconds.values()) < wall
    assert plan.resolve_plan is before


def test_inference(scan_file: Path, tmp_path: Path) -> None:
    import inference

    settings = ExecutionSettings.from_values({"fast_dev_run": 1, "enable_progress_bar": False})
    overrides = {"gridsize": 2, "n_filters": 8}
    run = runs.train(create_training_payload(scan_file, tmp_path / "run", overrides, settings)).folder
    calls = inference.parts(run, scan_file, 16, tmp_path)
    for call in calls.values():
        call()
    assert set(inference.STITCH_LIMITS) <= calls.keys()
    patches, positions = inference.predict(*_network_and_rows(run, scan_file), batch=16)[0]
    assert patches.shape == (64, 32, 32)
    assert positions.shape == (64, 2)
    inference.end_to_end(run, scan_file, 16, tmp_path / "whole")
    assert not (tmp_path / "whole").exists()


def _network_and_rows(run: Path, scan_file: Path) -> tuple[object, object]:
    from ptycho_torch.data.dataset import PtychoDataset
    from ptycho_torch.data.grouping import inference_groups
    from ptycho_torch.model import load_model

    module, science = load_model(run)
    scan = read_scan(scan_file, science.data)
    return module.eval(), PtychoDataset(scan, inference_groups(scan.positions_px, gridsize=2))


def test_every_event_of_startup_is_taken_in_turn(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import peer
    import startup

    order: list[str] = []

    def event(name: str) -> object:
        return lambda folder, scan: order.append(name) or startup.Start(1.0, 2.0, 3.0)

    monkeypatch.setattr(startup, "EVENTS", {name: event(name) for name in ("a", "b")})
    parser = argparse.ArgumentParser()
    peer.add_arguments(parser)
    taken, theirs = startup.measure(tmp_path, 2, peer.Peer(parser.parse_args([])))
    assert order == ["a", "b", "a", "b"]
    assert [start.event_s for start in taken["a"]] == [1.0, 1.0]
    assert theirs == []


def test_the_suite_names_scripts_that_exist() -> None:
    import suite

    assert all((BENCHMARKS / f"{name}.py").is_file() for name in suite.SUITE)
    assert {*suite.WITH_CHECKOUT, "refinement"} <= suite.SUITE.keys()


def test_the_suite_tells_each_script_about_its_peers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import engines
    import suite

    own = engines.Engine("Own", "json", "nothing to do", engines.ENGINES["ptychi"].begin)
    absent = engines.Engine("Absent", "no_such_package", "pip install no_such_package", own.begin)
    monkeypatch.setattr(engines, "ENGINES", {"own": own, "absent": absent})
    arguments = suite.words_for_peers([str(tmp_path), "own"], ["--peer-timeout", "9"])
    assert arguments["training"] == ["--peer", str(tmp_path), "--peer-timeout", "9"]
    assert arguments["refinement"] == ["--peer", "own"]
    assert not any(suite.words_for_peers([], []).values())
    with pytest.raises(SystemExit, match=r"names no checkout\n  expected: one folder .* own or absent"):
        suite.words_for_peers(["nowhere"], [])
    with pytest.raises(
        SystemExit, match=r"Absent cannot be imported(.|\n)*fix:      pip install no_such_package"
    ):
        suite.words_for_peers(["absent"], [])


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
@pytest.mark.parametrize("key", ["ptychi", "xptycho"])
def test_another_engine_finds_the_object(key: str) -> None:
    import engines
    import numpy as np

    pytest.importorskip(engines.ENGINES[key].package)
    scan = simulate_scan(n=32, patterns=64, seed=0)
    task = engines.load(key).begin(scan)
    task.run(20)
    inside = np.s_[20:-20, 20:-20]
    found, truth = task.read()[inside], scan.object_guess[inside]
    agreement = abs(np.vdot(found, truth)) / np.linalg.norm(found) / np.linalg.norm(truth)
    flat = abs(truth.sum()) / np.sqrt(truth.size) / np.linalg.norm(truth)
    assert agreement > flat + 0.5 * (1 - flat)


def test_rates_of_engines_are_taken_in_turn(scan_file: Path) -> None:
    import engines
    import refinement

    scan = read_scan(scan_file, DataConfig())
    epochs: list[int] = []
    work = engines.Task(lambda count: epochs.append(count) or sum(range(10**6)), lambda: scan.object_guess)
    other = engines.Engine("Other", "json", "", lambda _: work)
    found = refinement.rates(scan, [other], 3)
    assert epochs == [1] * 4
    assert found["Other"]["ratio"].n == 3
    assert found["Other"]["per_s"].median > 0
    assert "ratio" not in found[refinement.OURS]
    judge = refinement.Judge(scan)
    curve = refinement._curve_of(other, scan, judge, 60.0)
    assert [point.epochs for point in curve] == [5]  # good at once, since it gives the truth


@pytest.mark.slow
def test_large() -> None:
    import large

    (row,) = large.measure(large.Size.parse("32x64"), ["refine"], 1, 8)
    assert (row.n, row.patterns, row.task, row.worked) == (32, 64, "refine", 128)
    assert row.seconds > 0
    assert not sys.platform.startswith("linux") or 50 < row.anon_mib < large.MOST_MIB


def test_a_large_scan_is_simulated_as_a_small_one_and_equal_each_time(tmp_path: Path) -> None:
    import large
    import numpy as np

    scan = read_scan(large.write_scan(large.Size(32, 90), tmp_path / "scan.npz"))
    again = read_scan(large.write_scan(large.Size(32, 90), tmp_path / "again.npz"))
    assert (scan.patterns[:] == again.patterns[:]).all()
    small = simulate_scan(n=32, patterns=90, seed=0)
    assert np.ptp(scan.positions_px, axis=0) == pytest.approx(np.ptp(small.positions_px, axis=0), abs=2)
    assert scan.patterns[:].mean() == pytest.approx(small.patterns[:].mean(), rel=0.5)


def test_what_grows_too_fast_or_is_too_much_is_told() -> None:
    import large

    rows = [
        large.Row(64, 1000, "infer", 1.0, 1000, 300),
        large.Row(64, 4000, "infer", 4.0, 4000, 301),
        large.Row(128, 100, "infer", 0.45, 100, 300),  # 4.5 times; 4.67 are pixels x log(pixels)
        large.Row(256, 100, "infer", 4.0, 100, 800),
        large.Row(512, 10, "infer", 1.2, 10, 900),
    ]
    found = large.report(rows)
    (with_patterns,) = found["with_patterns"]
    assert with_patterns["exponent"] == pytest.approx(1)
    assert with_patterns["mib_per_1000_patterns"] == pytest.approx(1 / 3)
    assert [round(row["of_pixels_log_pixels"], 2) for row in found["with_pixels"]] == [1, 0.96, 1.87, 1.25]
    assert len(found["beyond_limits"]) == 3
    assert "800 MiB" in found["beyond_limits"][0]
    slow = large.growth_with_patterns([rows[0], large.Row(64, 4000, "infer", 8.0, 4000, 301)])
    assert len(large.faults(rows[:1], slow, [])) == 1


def test_unknown_probe() -> None:
    import unknown_probe

    for number in range(10):
        scan, facts = unknown_probe.make_scan(number, 16)
        again, _ = unknown_probe.make_scan(number, 16)
        assert (scan.patterns[:] == again.patterns[:]).all()
        assert scan.probe is not None
        assert len(scan.probe) == (1 if facts["probe"] != "modes" else len(scan.probe))
        per_pattern = scan.patterns[:].sum(axis=(1, 2)).max()
        assert 0.1 * facts["photons"] < per_pattern < 1.1 * facts["photons"]
    assert scan.object_guess is not None
    assert unknown_probe.agreement(scan.object_guess, scan) == pytest.approx(1, abs=1e-6)
    row = unknown_probe.probe_row(0, patterns=25, epochs=2, jobs=1)
    assert 0 <= row.agreement <= 1
    assert row.search_s > 0


def test_options_of_star_troubles_are_those_that_are_printed(tmp_path: Path) -> None:
    import numpy as np
    import star_troubles

    scan = simulate_scan(n=32, patterns=64, seed=0)
    arrays = star_troubles.part_of(save(scan, tmp_path / "scan.npz"), 36)
    assert arrays["diff3d"].shape == (36, 32, 32)
    beside = star_troubles.write(tmp_path / "off.npz", arrays, star_troubles.TROUBLES["beam 6 and 9 px off"])
    with np.load(beside) as held:
        assert held["diff3d"].dtype == np.float32
    printed = star_troubles.said(["inspect", str(beside)])
    lines = star_troubles.lines_naming(printed, "off the center")
    assert star_troubles.options_in(lines) == {"--center": "auto"}
    causes = ["  likely cause - background: beneath; try --refine-background true or --pedestal VALUE"]
    assert star_troubles.options_in(causes) == {"--refine-background": "true"}
