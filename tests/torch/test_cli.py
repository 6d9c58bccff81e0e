"""ptycho-torch as a user runs it: real processes, real files, one clear block for every mistake."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ptycho_exec.cli.flags import Parser, flags_given
from ptycho_exec.errors import SettingsError
from ptycho_exec.fields.spec import field_specs, format_value
from ptycho_exec.interrupts import Interrupted
from ptycho_exec.record import settings_from_manifest
from ptycho_exec.sources.resolve import Request, resolve
from ptycho_torch.cli import main
from ptycho_torch.data.read import read_scan
from ptycho_torch.reconstruction.orientation import orient_positions
from ptycho_torch.settings import ScienceSettings
from ptycho_torch.simulate import save, simulate_scan
from ptycho_torch.workflows import components

TINY = ["--n-filters=4", "--depth=1", "--epochs=2", "--batch-size=8", "--num-threads=1"]
Command = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def ptycho_torch(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Command:
    """Run the program in a directory of its own, as a person would."""
    home = str(tmp_path_factory.mktemp("home"))

    def command(*words: str, **variables: str) -> subprocess.CompletedProcess[str]:
        clean = {name: text for name, text in os.environ.items() if not name.startswith("PTYCHO_EXEC")}
        environment = {**clean, "OMP_NUM_THREADS": "1", "XDG_CONFIG_HOME": home, **variables}
        return subprocess.run(
            [sys.executable, "-m", "ptycho_torch", *words],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )

    return command


@pytest.fixture(scope="module")
def scan_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "scan.npz"
    assert main(["simulate", "--out", str(path), "--n=32", "--patterns=40", "--photons=1e5"]) == 0
    return path


@pytest.mark.slow
def test_train_infer_evaluate_from_end_to_end(ptycho_torch: Command, scan_file: Path, tmp_path: Path) -> None:
    (tmp_path / "ptycho_exec.toml").write_text("[trainer]\nmin_epochs = 2\nenable_model_summary = true\n")
    trained = ptycho_torch("train", str(scan_file), "--out", "run", *TINY, PTYCHO_EXEC_SEED="5")
    assert trained.returncode == 0, trained.stderr
    place = re.escape(str(tmp_path / "ptycho_exec.toml"))
    assert re.search(rf"trainer.min_epochs +2 +project-file \({place}:2\)", trained.stdout)
    assert "Trainable params" in trained.stdout
    assert "environment PTYCHO_EXEC_SEED" in trained.stdout
    assert "flag --batch-size" in trained.stdout
    run = tmp_path / "run"
    assert {path.name for path in run.iterdir()} == {
        "manifest.json", "settings.toml", "trainer_kwargs_snapshot.json", "checkpoints", "logs", "model.ckpt",
        "loss.png", "report.npz", "report.html",
    }  # fmt: skip
    manifest = json.loads((run / "manifest.json").read_text())
    assert manifest["status"] == "completed"
    assert manifest["origins"]["seed"]["place"] == "PTYCHO_EXEC_SEED"
    assert manifest["applied"]["batch_size"] == 8
    assert set(manifest["outputs"]) == {"model.ckpt", "loss.png", "report.npz"}
    assert settings_from_manifest(run).seed == 5
    snapshot = json.loads((run / "trainer_kwargs_snapshot.json").read_text())
    assert snapshot["max_epochs"] == 2

    (words,) = re.findall(r"a loss does not judge; `ptycho-torch (infer .*) --out OUT`", trained.stdout)
    inferred = ptycho_torch(*shlex.split(words), "--out", "out", "--inference-batch-size=9")
    assert inferred.returncode == 0, inferred.stderr
    assert "amplitude_ssim" in inferred.stdout
    with np.load(tmp_path / "out" / "reconstruction.npz") as made, np.load(scan_file) as truth:
        assert made["object"].dtype == np.complex64
        assert made["object"].shape == made["coverage"].shape == truth["objectGuess"].shape
        assert made["coverage"].dtype == np.float32

    scored = ptycho_torch("evaluate", "out", "--truth", str(scan_file))
    assert scored.returncode == 0, scored.stderr
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert {"amplitude_ssim", "phase_ssim", "amplitude_psnr_db", "phase_psnr_db", "nrmse", "frc_half_px",
            "coverage"} <= set(metrics)  # fmt: skip
    assert (tmp_path / "out" / "report.html").stat().st_size > 10_000
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {"run", "out", "ptycho_exec.toml"}, "nothing may land outside the run directories"


@pytest.mark.slow
def test_the_demo_shows_truth_network_and_refined_network_side_by_side(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "demo_run").mkdir()  # of a demo before
    folder = tmp_path / "demo_run_2"
    assert main(["demo", "--n=32", "--patterns=60", *TINY]) == 0
    network, refined = (
        json.loads((folder / name / "metrics.json").read_text()) for name in ("infer", "refine")
    )
    assert refined["nrmse"] < 0.5 * network["nrmse"]
    table = capsys.readouterr().out.rpartition("$ ptycho-torch evaluate")[2].splitlines()
    assert next(line for line in table if "refine" in line and "infer" in line and "$" not in line)
    scores = next(line.split() for line in table if line.strip().startswith("nrmse"))
    assert scores[1:] == [f"{network['nrmse']:.4g}", f"{refined['nrmse']:.4g}"]
    with (
        Image.open(folder / "comparison.png") as all_three,
        Image.open(folder / "infer" / "comparison.png") as only_network,
    ):
        assert all_three.width > 1.2 * only_network.width, "one picture more beside the truth"


@pytest.mark.slow
def test_evaluate_tells_equal_names_apart_and_spares_an_existing_picture(
    scan_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    outs = [str(tmp_path / part / "out") for part in ("one", "two")]
    for epochs, out in enumerate(outs, start=1):
        words = ["infer", str(scan_file), "--start=flat", f"--refine={epochs}", "--out", out]
        assert main(words) == 0
    picture = tmp_path / "both.png"
    words = ["evaluate", *outs, "--truth", str(scan_file), "--picture", str(picture)]
    capsys.readouterr()
    assert main(words) == 0
    assert all(out in capsys.readouterr().out.splitlines()[0] for out in outs[:1])
    before = picture.read_bytes()
    assert main(words) == 1
    assert picture.read_bytes() == before


@pytest.mark.slow
def test_several_scans_are_reconstructed_with_one_network(
    scan_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, alone, outs = (str(tmp_path / name) for name in ("run", "alone", "outs"))
    assert main(["train", str(scan_file), "--out", run, *TINY]) == 0
    scans = [tmp_path / place for place in ("first/scan.npz", "second/scan.npz", "other.npz", "broken.npz")]
    for scan in scans:
        scan.parent.mkdir(exist_ok=True)
        scan.write_bytes(scan_file.read_bytes())
    scans[3].write_bytes(scan_file.read_bytes()[:2000])
    order = [str(scans[i]) for i in (0, 3, 1, 2)]
    capsys.readouterr()
    assert main(["infer", run, *order, "--out", outs]) == 1
    said = capsys.readouterr()
    assert said.out.count("time: ") == 3
    assert f"{scans[3]}: failed" in said.out
    assert said.err.count(str(scans[3])) == 1
    assert sorted(path.name for path in Path(outs).iterdir()) == ["first_scan", "other", "second_scan"]
    assert main(["infer", run, str(scans[2]), "--out", alone]) == 0
    for name in ("first_scan", "other", "second_scan"):
        assert same_object(Path(outs, name), Path(alone)), "what was done before leaves no trace"
        manifest = json.loads(Path(outs, name, "manifest.json").read_text())
        assert manifest["status"] == "completed"
        assert manifest["data"]["test"]["source"].endswith(f"{name.replace('_', '/')}.npz")


def same_object(one: Path, other: Path) -> bool:
    with np.load(one / "reconstruction.npz") as a, np.load(other / "reconstruction.npz") as b:
        return bool(np.array_equal(a["object"], b["object"]))


@pytest.mark.slow
def test_several_scans_without_a_network(scan_file: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.npz"
    other.write_bytes(scan_file.read_bytes())
    words = [
        "infer",
        str(scan_file),
        str(other),
        "--start=flat",
        "--refine=1",
        "--out",
        str(tmp_path / "outs"),
    ]
    assert main(words) == 0
    assert {path.name for path in (tmp_path / "outs").iterdir()} == {scan_file.stem, "other"}


def test_an_interruption_says_which_scans_are_done(
    scan_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    other, outs = tmp_path / "other.npz", tmp_path / "outs"
    other.write_bytes(scan_file.read_bytes())
    judge = components._judge

    def interrupted_at_the_second(inference: components.Inference, *rest: Any) -> Any:
        if inference.scan.source == other:
            raise Interrupted
        return judge(inference, *rest)

    monkeypatch.setattr(components, "_judge", interrupted_at_the_second)
    words = ["infer", str(scan_file), str(other), "--start=flat", "--refine=1", "--out", str(outs)]
    assert main(words) == 130
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.endswith(f"of 2 scans the first 1 were worked on, their results are in {outs}")
    assert [path.name for path in outs.iterdir()] == [scan_file.stem]


@pytest.mark.parametrize(
    ("names", "flags", "message"),
    [
        (("one/a/scan.npz", "two/a/scan.npz"), (), "several results would be written to"),
        (("one.npz", "two.npz"), ("--strategy=ddp", "--devices=2"), "2 scans are given"),
        (("one.npz", "missing.npz"), (), "missing.npz"),
    ],
)
def test_several_scans_that_cannot_be(
    names: tuple[str, ...],
    flags: tuple[str, ...],
    message: str,
    scan_file: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    scans = [tmp_path / name for name in names]
    for scan in scans:
        if scan.name != "missing.npz":
            scan.parent.mkdir(parents=True, exist_ok=True)
            scan.write_bytes(scan_file.read_bytes())
    outs = tmp_path / "outs"
    words = ["infer", *map(str, scans), "--start=flat", "--refine=1", "--out", str(outs), *flags]
    assert main(words) != 0
    assert message in capsys.readouterr().err
    assert not outs.exists()


def test_a_command_in_a_program_begins_when_it_is_called(
    scan_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ptycho_torch.cli.process_age", lambda: 3600.0)
    assert main(["infer", str(scan_file), "--start=flat", "--refine=1", "--out", str(tmp_path / "out")]) == 0
    timings = json.loads((tmp_path / "out" / "manifest.json").read_text())["timings"]
    assert sum(timings.values()) < 3600


@pytest.mark.slow
def test_every_second_of_a_command_is_named(ptycho_torch: Command, scan_file: Path, tmp_path: Path) -> None:
    done = ptycho_torch("infer", str(scan_file), "--start=flat", "--refine=1", "--out", "out")
    assert done.returncode == 0, done.stderr
    timings = json.loads((tmp_path / "out" / "manifest.json").read_text())["timings"]
    expected = {"start", "import", "read", "prepare", "refine", "check", "write", "report", "score"}
    assert expected <= set(timings)
    (total,) = re.findall(r"^time: ([0-9.]+) s", done.stdout, re.MULTILINE)
    assert sum(timings.values()) == pytest.approx(float(total), abs=0.06)
    assert timings.get("other", 0) < 0.1 * sum(timings.values())


def test_resume_continues_an_earlier_run(scan_file: Path, tmp_path: Path) -> None:
    first, more = tmp_path / "first", tmp_path / "more"
    assert main(["train", str(scan_file), "--out", str(first), *TINY]) == 0
    longer = [word for word in TINY if not word.startswith("--epochs")] + ["--epochs=3"]
    assert main(["train", str(scan_file), "--out", str(more), "--resume", str(first), *longer]) == 0
    manifest = json.loads((more / "manifest.json").read_text())
    assert manifest["trained"]["epochs"] == 3
    assert manifest["resumed_from"] == str(first / "checkpoints" / "last.ckpt")


def test_simulate_then_inspect_and_convert(
    scan_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["inspect", str(scan_file), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["domain"]["value"] == "intensity"
    target = tmp_path / "amplitude.npz"
    assert main(["convert", str(scan_file), str(target), "--to", "npz-amplitude"]) == 0
    capsys.readouterr()
    assert main(["inspect", str(target)]) == 0
    assert re.search(r"^domain +amplitude: declared in the file$", capsys.readouterr().out, re.MULTILINE)


def strange(scan_file: Path, target: Path) -> Path:
    """Write the scan under other names, its zero frequency in the corner, with the object and the probe."""
    with np.load(scan_file) as scan:
        np.savez(
            target,
            data=np.fft.ifftshift(scan["diff3d"], axes=(1, 2)),
            scan=np.stack([scan["xcoords"], scan["ycoords"]], axis=1) * 20,
            probe=scan["probeGuess"],
            truth=scan["objectGuess"],
        )
    return target


OF_STRANGER = ["--map", "patterns=data", "--map", "positions=scan", "--map", "probe=probe", "--map",
               "object=truth", "--positions-order=xy", "--positions-unit=nm", "--pixel-size-m=2e-8",
               "--zero-frequency=corner", "--crop=30"]  # fmt: skip


@pytest.mark.slow
def test_a_strangers_scan_is_trained_on_reconstructed_and_scored(
    scan_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    strange(scan_file, tmp_path / "s.npz")
    assert main(["train", "s.npz", "--out", "run", *OF_STRANGER, *TINY]) == 0
    recorded = json.loads(Path("run/manifest.json").read_text())
    assert recorded["science"]["data"]["map"]["patterns"] == "data"
    assert recorded["science"]["data"]["crop"] == 30
    assert main(["infer", "run", "s.npz", "--out", "out"]) == 0, "the model knows how its scans are read"
    assert "amplitude_ssim" in capsys.readouterr().out
    with np.load("out/reconstruction.npz") as made:
        assert made["pixel_size_m"] == pytest.approx(2e-8 * 32 / 30)
    assert main(["evaluate", "out", "--truth", "s.npz", *OF_STRANGER]) == 0


@pytest.mark.slow
def test_inspect_and_convert_find_what_they_are_asked_to_find(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    scan = simulate_scan(n=32, patterns=100, photons=1e6, step_px=2.5, seed=1)
    stored = orient_positions(scan.positions_px - np.asarray(scan.position_shift_px), "transpose")
    save(replace(scan, positions_px=stored, object_guess=None), Path("turned.npz"))
    assert main(["inspect", "turned.npz", "--orient", "auto", "--json"]) == 0
    seen = capsys.readouterr()
    (row,) = json.loads(seen.out)["decisions"]
    assert row["value"] == "transpose"
    assert f"--orient transpose: {row['evidence']}" in seen.err
    words = ["convert", "turned.npz", "back.npz", "--to", "npz", "--orient", "auto", "--probe", "estimate"]
    assert main(words) == 0
    back = read_scan("back.npz")
    apart = back.positions_px - scan.positions_px
    assert np.allclose(apart, apart[0])
    assert back.probe is not None


def test_inspect_draws_what_preprocessing_does_and_convert_writes_it(
    scan_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    strange(scan_file, tmp_path / "s.npz")
    assert main(["inspect", "s.npz", *OF_STRANGER, "--plot", "s.png"]) == 0
    text = capsys.readouterr().out
    assert "zero_frequency corner" in text
    assert "wrote s.png" in text
    with Image.open("s.png") as image:
        assert image.width > 2 * image.height
    assert main(["inspect", "s.npz", *OF_STRANGER, "--plot", "s.png"]) == 1
    assert "s.png exists already" in capsys.readouterr().err
    assert main(["convert", "s.npz", "clean.npz", "--to", "npz", *OF_STRANGER]) == 0
    capsys.readouterr()
    reports = []
    for words in (["s.npz", *OF_STRANGER], ["clean.npz"]):
        assert main(["inspect", *words, "--json"]) == 0
        reports.append(json.loads(capsys.readouterr().out))
    for name in ("N", "canvas_px", "mean_intensity_per_pattern", "probe_diameter_px", "geometry"):
        assert reports[1][name] == pytest.approx(reports[0][name]), name


def broken(scan_file: Path, target: Path, **changes: object) -> Path:
    with np.load(scan_file) as archive:
        arrays = {name: archive[name] for name in archive.files}
    for name, value in changes.items():
        if value is None:
            del arrays[name]
        else:
            arrays[name] = value
    np.savez(target, **arrays)
    return target


MISTAKES: dict[str, tuple[list[str], int, str]] = {
    "missing file": (["train", "nothere.npz", "--out", "new"], 1, "not found"),
    "missing key": (["train", "no_probe.npz", "--probe", "file", "--out", "new"], 1, "no probe"),
    "no probe to start from": (
        ["infer", "no_probe.npz", "--probe=file", "--start=flat", "--refine=2", "--out", "new"],
        1,
        "--probe FILE",
    ),
    "no such probe": (["train", "scan.npz", "--probe", "nowhere", "--out", "new"], 1, "no such probe"),
    "a name that is not there": (["inspect", "scan.npz", "--map", "patterns=x"], 1, "diff3d 40x32x32"),
    "the file itself": (["convert", "scan.npz", "scan.npz", "--to", "npz"], 1, "the target exists"),
    "nothing to refine": (["infer", "scan.npz", "--start=flat", "--out", "new"], 2, "choose refine >= 1"),
    "wrong shape": (["train", "oblong.npz", "--out", "new"], 1, "--crop 16"),
    "NaN": (["train", "nan.npz", "--out", "new"], 1, "nan"),
    "truncated": (["train", "truncated.npz", "--out", "new"], 1, "truncated"),
    "ambiguous domain": (["train", "ambiguous.npz", "--out", "new"], 1, "domain"),
    "unknown flag": (["train", "scan.npz", "--out", "new", "--batchsize", "3"], 2, "--batch-size"),
    "abbreviated flag": (["train", "scan.npz", "--out", "new", "--epoch", "3"], 2, "--epochs"),
    "no such GPU": (["train", "scan.npz", "--out", "new", "--accelerator", "mps"], 2, "flag --accelerator"),
    "negative batch": (
        ["train", "scan.npz", "--out", "new", "--batch-size", "-4"],
        2,
        "an integer at least 1",
    ),
    "bad science": (["train", "scan.npz", "--out", "new", "--gridsize", "x"], 2, "--gridsize"),
    "contradictory science": (["inspect", "scan.npz", "--max-neighbor-distance-px=3"], 2, "choose grouping"),
    "missing argument": (["train", "scan.npz"], 2, "--out"),
    "occupied directory": (["train", "scan.npz", "--out", "occupied"], 1, "not empty"),
    "unwritable directory": (["train", "scan.npz", "--out", "/proc/new"], 1, "cannot write"),
    "out is a file": (["train", "scan.npz", "--out", "scan.npz"], 1, "is a file"),
    "no model": (["infer", "nowhere", "scan.npz", "--out", "new"], 1, "no trained model"),
    "not a model": (["infer", "scan.npz", "scan.npz", "--out", "new"], 1, "cannot read the model"),
    "nothing to resume": (["train", "scan.npz", "--out", "new", "--resume", "nowhere"], 1, "no checkpoint"),
    "nothing to score": (["evaluate", "nowhere", "--truth", "scan.npz"], 1, "no reconstruction"),
    "unknown command": (["trian", "scan.npz"], 2, "train"),
    "unknown format": (["convert", "scan.npz", "new.npz", "--to", "npy"], 1, "npz"),
}


@pytest.fixture
def mistakes_folder(scan_file: Path, tmp_path: Path) -> Path:
    with np.load(scan_file) as archive:
        patterns = archive["diff3d"]
    broken(scan_file, tmp_path / "scan.npz")
    broken(scan_file, tmp_path / "no_probe.npz", probeGuess=None)
    broken(scan_file, tmp_path / "oblong.npz", diff3d=patterns[:, :16])
    holed = patterns.astype(np.float32)
    holed[0, 3, 3] = np.nan
    broken(scan_file, tmp_path / "nan.npz", diff3d=holed)
    noise = np.random.default_rng(0).random(patterns.shape, dtype=np.float32)
    broken(
        scan_file, tmp_path / "ambiguous.npz", diff3d=noise, domain=None, bad_pixels=None, objectGuess=None
    )
    (tmp_path / "truncated.npz").write_bytes(scan_file.read_bytes()[:3000])
    (tmp_path / "occupied").mkdir()
    (tmp_path / "occupied" / "precious.txt").write_text("keep me")
    return tmp_path


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_clear_block_and_leaves_nothing(
    name: str, mistakes_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(mistakes_folder)
    before = sorted(mistakes_folder.rglob("*"))
    words, code, told = MISTAKES[name]
    assert main(words) == code
    error = capsys.readouterr().err
    assert told in error
    assert error.startswith("ptycho-torch")
    assert "Traceback" not in error
    assert "\n\n" not in error
    assert sorted(mistakes_folder.rglob("*")) == before


def test_an_unknown_variable_stops_the_program(ptycho_torch: Command, scan_file: Path) -> None:
    done = ptycho_torch("train", str(scan_file), "--out", "run", PTYCHO_EXEC_BATCHSIZE="3")
    assert done.returncode == 2
    assert "PTYCHO_EXEC_BATCH_SIZE" in done.stderr
    assert "Traceback" not in done.stderr


def test_debug_shows_the_traceback(ptycho_torch: Command) -> None:
    done = ptycho_torch("inspect", "nothere.npz", "--debug")
    assert "Traceback" in done.stderr


def test_a_failed_training_says_so_in_its_manifest(
    scan_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    assert main(["train", str(scan_file), "--out", str(out), *TINY, "--loss=supervised"]) == 1
    assert "labels" in capsys.readouterr().err
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["status"] == "failed"
    assert manifest["error"]
    assert not (out / "model.ckpt").exists()


# --- science flags --------------------------------------------------------------------------------------

SCIENCE_SPECS = dict(field_specs(ScienceSettings))


def science(*words: str) -> dict[str, object]:
    parser = Parser(prog="p")
    parser.add_argument("scan", nargs="?")
    parser.add_fields(parser.add_argument_group("science"), SCIENCE_SPECS.values())
    flags = flags_given(parser.parse(list(words)), ScienceSettings)
    resolution = resolve(Request(ScienceSettings, flags=flags, environ={}, cwd=Path("/nowhere")))
    try:
        ScienceSettings.from_resolution(resolution)
    except SettingsError as error:
        if {finding.code for finding in error.findings} != {"conflict"}:
            raise
    return dict(resolution.values)


def test_science_and_settings_share_no_flag() -> None:
    assert not set(SCIENCE_SPECS) & set(field_specs())
    assert len({spec.flag for spec in SCIENCE_SPECS.values()}) == len(SCIENCE_SPECS)


@pytest.mark.parametrize("name", SCIENCE_SPECS)
def test_the_default_written_as_a_science_flag_is_the_default(name: str) -> None:
    spec = SCIENCE_SPECS[name]
    values = science(f"{spec.flag}={format_value(spec.default)}")
    assert list(values) == [name]
    assert getattr(ScienceSettings.from_values(values), name) == spec.default


def test_science_flags_arrive_in_their_own_type() -> None:
    given = science("--epochs", "3", "--x-bounds", "0.1,0.9", "--loss", "poisson", "--n", "64")
    assert given == {"epochs": 3, "x_bounds": [0.1, 0.9], "loss": "poisson", "N": 64}
    assert science() == {}
    assert science("--epochs=3", "--epochs=4") == {"epochs": 4}


@pytest.mark.parametrize("name", [name for name, spec in SCIENCE_SPECS.items() if spec.boolean])
def test_a_boolean_of_science_is_a_switch_like_one_of_the_settings(name: str) -> None:
    flag = SCIENCE_SPECS[name].flag
    for words, value in (
        ([flag], True),
        ([f"--no-{flag[2:]}"], False),
        ([flag, "false"], False),
        ([f"{flag}=on"], True),
        ([flag, "scan.npz"], True),
    ):
        assert science(*words) == {name: value}, words


def test_wrong_science_values_are_told_together_like_wrong_settings() -> None:
    with pytest.raises(SettingsError) as caught:
        science(
            "--epochs", "many", "--epochs", "3", "--loss", "mse", "--y-bounds", "0.9,0.1", "--sequential=ja"
        )
    told = {finding.field: finding for finding in caught.value.findings}
    assert set(told) == {"epochs", "loss", "y_bounds", "sequential"}
    assert told["loss"].what == "loss = 'mse' is not allowed"
    assert told["loss"].where == "flag --loss"
    assert told["loss"].expected == "one of: auto, mae, poisson, supervised"
    assert told["loss"].fix == "did you mean mae?"
    assert told["y_bounds"].expected == "a list of two fractions with 0 <= low < high <= 1"
    assert told["epochs"].fix == "write another value, or remove it for the default, 60"
    assert told["sequential"].expected == "true or false"


@pytest.mark.parametrize(("workers", "beside"), [(0, [("ptycho_torch.figures", "jinja2")]), (2, [])])
def test_nothing_is_imported_beside_where_workers_are_forked(
    workers: int, beside: list[Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    imported: list[Any] = []
    monkeypatch.setattr("ptycho_torch.cli.import_beside", lambda *names: imported.append(names))
    file = save(simulate_scan(n=32, patterns=40, seed=0), tmp_path / "scan.npz")
    words = ["--start=flat", "--refine=1", "--num-threads=1", f"--num-workers={workers}"]
    assert main(["infer", str(file), *words, f"--out={tmp_path / 'out'}"]) == 0
    assert imported == beside
