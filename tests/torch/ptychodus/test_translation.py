"""The door that Ptychodus opens: its keyword classes, where each keyword goes, checkpoints, training data."""

from __future__ import annotations

import copy
import logging
import os
import pickle
import re
import subprocess
import sys
import time
from dataclasses import fields, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args

import numpy as np
import pytest
import torch

from ptycho_exec.errors import DataError, SettingsError
from ptycho_exec.fields.model import Strategy
from ptycho_exec.machine.facts import Gpu, MachineFacts
from ptycho_torch.config import DataConfig as ScienceData
from ptycho_torch.config import ModelConfig as ScienceModel
from ptycho_torch.config import ScienceConfig
from ptycho_torch.config import TrainingConfig as ScienceTraining
from ptycho_torch.data.formats.npz import write_npz
from ptycho_torch.data.formats.ptychodus import write_ptychodus, write_training
from ptycho_torch.data.scan import ScanData
from ptycho_torch.lightning_utils import find_best_checkpoint
from ptycho_torch.physics import forward as physics
from ptycho_torch.ptychodus import translation
from ptycho_torch.ptychodus.checkpoints import plain_keywords
from ptycho_torch.ptychodus.epochs import EpochNews
from ptycho_torch.ptychodus.keywords import (
    DataConfig,
    DatagenConfig,
    InferenceConfig,
    Keywords,
    ModelConfig,
    TrainingConfig,
)
from ptycho_torch.ptychodus.training_data import find_sources, joined, read_training_data, with_labels
from ptycho_torch.ptychodus.translation import KEYWORDS, SECTIONS, Configs
from ptycho_torch.simulate import simulate_scan

SPEC = Path(__file__).parents[3] / "specs" / "ptychodus.md"
ALL_KEYWORDS = [(section, name) for section, rows in KEYWORDS.items() for name in rows]
FOUR_GPUS = MachineFacts(gpus=(Gpu(name="A100", memory_mb=40_000, capability="8.0", bf16=True),) * 4)


def configs(**changes: Any) -> Configs:
    """Return Ptychodus's defaults with `section__keyword` changed."""
    given: dict[str, dict[str, Any]] = {section: {} for section in SECTIONS}
    for key, value in changes.items():
        section, _, name = key.partition("__")
        given[section][name] = value
    return Configs.from_dict(given)


@pytest.fixture(autouse=True)
def bare_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No settings of the machine that runs the tests."""
    for name in [name for name in os.environ if name.startswith("PTYCHO_EXEC_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "no-config"))
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")


# --- keyword classes


def test_the_keyword_classes_are_light() -> None:
    """Ptychodus imports them in its own process, before CUDA_VISIBLE_DEVICES is set in the child."""
    code = (
        "import sys, ptycho_torch.config_params as c;"
        "c.DataConfig(N=64); c.TrainingConfig(epochs=1).n_devices = 2;"
        "heavy = {'torch', 'lightning', 'numpy', 'pydantic', 'h5py', 'scipy'} & set(sys.modules);"
        "print(sorted(heavy))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("kind", [*SECTIONS.values(), DatagenConfig])
def test_keyword_classes_travel_and_change(kind: type[Keywords]) -> None:
    one = kind()
    for field in fields(one):
        setattr(one, field.name, ("changed", field.name))
    two = pickle.loads(pickle.dumps(one))
    assert two == one == copy.deepcopy(one)
    assert all(getattr(two, field.name) == ("changed", field.name) for field in fields(one))
    assert kind() != one or not fields(one)


def test_a_keyword_of_a_later_release_is_told_once_and_kept(caplog: pytest.LogCaptureFixture) -> None:
    config = TrainingConfig(epochs=3, lerning_rate=0.5, quantum=True)
    assert len(caplog.records) == 1
    assert "lerning_rate (the nearest known is learning_rate)" in caplog.text
    assert "quantum" in caplog.text
    assert (config.epochs, config.learning_rate, config.quantum) == (3, 1e-3, True)
    travelled = pickle.loads(pickle.dumps(config))
    assert travelled.unknown_keywords == {"lerning_rate": 0.5, "quantum": True}
    assert len(caplog.records) == 1
    config.n_device = 4
    assert "n_device (the nearest known is n_devices)" in caplog.text
    with pytest.raises(AttributeError, match="no keyword 'absent'"):
        _ = config.absent


def test_the_defaults_are_what_ptychodus_sends(caplog: pytest.LogCaptureFixture) -> None:
    """Every keyword of the installed release is known, and an unchanged one has our default."""
    settings = pytest.importorskip(
        "ptychodus.model.ptychopinn_torch.settings", reason="needs the ptychodus extra"
    )
    from ptychodus.api.settings import SettingsRegistry
    from ptychodus.model.ptychopinn_torch.reconstructor import _build_configs

    registry = SettingsRegistry()
    sent = _build_configs(
        "Unsupervised",
        settings.PtychoPINNTorchDataSettings(registry),
        settings.PtychoPINNTorchModelSettings(registry),
        settings.PtychoPINNTorchTrainingSettings(registry),
        settings.PtychoPINNTorchInferenceSettings(registry),
    )
    ours = (DataConfig(), ModelConfig(), TrainingConfig(), InferenceConfig(), DatagenConfig())
    assert sent == ours
    assert caplog.records == []


# --- where each keyword goes


def test_every_keyword_has_its_row() -> None:
    for section, kind in SECTIONS.items():
        assert set(KEYWORDS[section]) == {field.name for field in fields(kind)}
    for section, name in ALL_KEYWORDS:
        goes = KEYWORDS[section][name]
        assert goes.to or goes.note, f"{name} goes nowhere and nobody says why"


def test_the_table_of_the_spec_is_the_table() -> None:
    rows = re.findall(r"^\| (\w+Config\.\w+) \| (.+?) \| (.*?) ?\|$", SPEC.read_text(), re.M)
    assert rows == [
        (
            f"{SECTIONS[section].__name__}.{name}",
            KEYWORDS[section][name].to or "-",
            KEYWORDS[section][name].note,
        )
        for section, name in ALL_KEYWORDS
    ]


def test_science_fields_and_settings_of_the_table_exist() -> None:
    from ptycho_exec.settings import ExecutionSettings
    from ptycho_torch import config

    for section, name in ALL_KEYWORDS:
        for place in filter(None, KEYWORDS[section][name].to.split(", ")):
            owner, _, field = place.rpartition(".")
            if owner and owner != "manifest":
                assert field in getattr(config, owner).model_fields, place
            elif place not in ("labels", "manifest.json"):
                assert place in ExecutionSettings.model_fields, place


CHANGED: dict[tuple[str, str], Any] = {
    ("data", "N"): 64,
    ("data", "C"): 1,
    ("data", "normalize"): "Group",
    ("data", "neighbor_function"): "4_quadrant",
    ("data", "scan_pattern"): "Rectangular",
    ("data", "probe_normalize"): False,
    ("data", "x_bounds"): (0.0, 1.0),
    ("data", "y_bounds"): (0.2, 0.8),
    ("data", "min_neighbor_distance"): 1.5,
    ("data", "max_neighbor_distance"): 9.0,
    ("data", "K_quadrant"): 12,
    ("data", "n_subsample"): 2,
    ("data", "probe_scale"): 1.0,
    ("data", "K"): 9,
    ("data", "grid_size"): (4, 1),
    ("data", "probe_ramp_removal"): True,
    ("data", "data_scaling"): "Max",
    ("data", "phase_subtraction"): False,
    ("model", "mode"): "Supervised",
    ("model", "loss_function"): "MAE",
    ("model", "amp_activation"): "sigmoid",
    ("model", "decoder_last_amp_channels"): 1,
    ("model", "intensity_scale"): 5.0,
    ("model", "max_position_jitter"): 3,
    ("model", "num_datasets"): 2,
    ("model", "C_model"): 1,
    ("model", "C_forward"): 1,
    ("model", "amp_loss"): "Total_Variation",
    ("model", "phase_loss"): "Total_Variation",
    ("model", "amp_loss_coeff"): 0.2,
    ("model", "phase_loss_coeff"): 0.3,
    ("model", "n_filters_scale"): 1,
    ("model", "probe_mask"): np.ones((2, 2)),
    ("model", "edge_pad"): 4,
    ("model", "decoder_last_c_outer_fraction"): 0.5,
    ("model", "decoder_spatial_kernel"): 3,
    ("model", "offset"): 4,
    ("model", "probe_reference_coeff"): 0.1,
    ("model", "amplitude_variance_coeff"): 0.5,
    ("training", "epochs"): 7,
    ("training", "batch_size"): 4,
    ("training", "learning_rate"): 1e-2,
    ("training", "n_devices"): 2,
    ("training", "num_workers"): 0,
    ("training", "accum_steps"): 2,
    ("training", "epochs_fine_tune"): 5,
    ("training", "fine_tune_gamma"): 0.5,
    ("training", "gradient_clip_val"): 1.0,
    ("training", "device"): "cpu",
    ("training", "strategy"): "ddp_fork",
    ("training", "framework"): "Default",
    ("training", "orchestrator"): "Mlflow",
    ("training", "scheduler"): "Cosine",
    ("training", "warmup_epochs"): 3,
    ("training", "min_lr_ratio"): 0.5,
    ("training", "notes"): "a note",
    ("training", "finetune_val_split"): 0.2,
    ("training", "model_name"): "mine",
    ("inference", "batch_size"): 50,
    ("inference", "middle_trim"): 16,
    ("inference", "experiment_number"): 1,
    ("inference", "patch_weighting"): "uniform",
    ("inference", "pad_eval"): False,
    ("inference", "window"): 5,
}
NEEDS: dict[tuple[str, str], dict[str, Any]] = {
    ("data", "min_neighbor_distance"): {"data__neighbor_function": "Min_dist"},
    ("data", "max_neighbor_distance"): {"data__neighbor_function": "Min_dist"},
    ("data", "K_quadrant"): {"data__neighbor_function": "4_quadrant"},
    ("model", "amp_loss_coeff"): {"model__amp_loss": "Mean_Deviation"},
    ("model", "phase_loss_coeff"): {"model__phase_loss": "Total_Variation"},
    ("training", "strategy"): {"training__n_devices": 2},
}
"""What another keyword must be for this one to act."""
ELSEWHERE = {("data", "N"), ("data", "phase_subtraction"), ("training", "notes"), ("training", "model_name")}
"""Keywords that act on neither science nor settings; tests of their own show that they act."""


def another(section: str, name: str) -> Any:
    if (section, name) in CHANGED:
        return CHANGED[section, name]
    value = getattr(SECTIONS[section], name)
    return not value if isinstance(value, bool) else value + 1


def meaning(given: Configs) -> tuple[Any, tuple[str, ...]]:
    """Return what keywords come to, in training and reconstruction, and what is told."""
    training = translation.for_training(given, n_pixels=128, n_patterns=100, facts=FOUR_GPUS)
    inference = translation.for_inference(given, training.science, 128, FOUR_GPUS, n_modes=1)
    acts = (training.science, training.execution, inference.science, inference.execution)
    return acts, (*training.notes, *inference.notes)


def test_patches_outside_the_canvas_are_cropped() -> None:
    """Ptychodus cannot be told to make its object larger."""
    training, inference = (
        translation.for_training(configs(), n_pixels=128, n_patterns=100, facts=FOUR_GPUS),
        translation.for_inference(configs(), ScienceConfig(), 128, FOUR_GPUS, n_modes=1),
    )
    assert training.science.inference.out_of_canvas == "crop"
    assert inference.science.inference.out_of_canvas == "crop"


def test_nothing_is_told_of_an_ordinary_run() -> None:
    _, told = meaning(configs())
    assert told == ()


@pytest.mark.parametrize(("section", "name"), ALL_KEYWORDS)
def test_a_changed_keyword_acts_or_is_told(section: str, name: str) -> None:
    context = NEEDS.get((section, name), {})
    before, quiet = meaning(configs(**context))
    after, told = meaning(configs(**{**context, f"{section}__{name}": another(section, name)}))
    mentions = [line for line in told if line.startswith((f"{name} ", f"{name}:"))]
    if (section, name) in ELSEWHERE:
        assert after == before
    elif KEYWORDS[section][name].to:
        assert after != before
        assert mentions == []
    else:
        assert after == before
        assert len(mentions) == 1
        assert "has no effect: " in mentions[0]
    assert not [line for line in quiet if line.startswith(f"{name} ")]


DORMANT: list[tuple[dict[str, Any], str]] = [
    ({"data__max_neighbor_distance": 9.0}, "max_neighbor_distance"),
    ({"data__min_neighbor_distance": 1.0}, "min_neighbor_distance"),
    ({"data__K_quadrant": 9}, "K_quadrant"),
    ({"data__K": 9, "data__neighbor_function": "4_quadrant"}, "K"),
    ({"data__C": 1, "data__n_subsample": 3}, "n_subsample"),
    ({"data__C": 1, "data__neighbor_function": "4_quadrant"}, "neighbor_function"),
    ({"data__C": 1, "model__object_big": False}, "object_big"),
    ({"model__amp_loss_coeff": 2.0}, "amp_loss_coeff"),
    ({"model__phase_loss": "Mean_Deviation"}, "phase_loss"),
    ({"model__mode": "Supervised", "model__loss_function": "MAE"}, "loss_function"),
    ({"model__mode": "Supervised", "training__nll": False}, "nll"),
    ({"data__phase_subtraction": False}, "phase_subtraction"),
    ({"training__strategy": "ddp"}, "strategy"),
    ({"model__mode": "Supervised", "model__object_big": False}, "object_big"),
    ({"model__mode": "Supervised", "model__intensity_scale_trainable": True}, "intensity_scale_trainable"),
    ({"model__loss_function": "MAE", "training__nll": False}, "nll"),
    ({"model__amp_loss": "SSIM", "model__amp_loss_coeff": 2.0}, "amp_loss_coeff"),
]


@pytest.mark.parametrize(("changes", "name"), DORMANT)
def test_a_keyword_that_another_one_silences_is_told(changes: dict[str, Any], name: str) -> None:
    _, told = meaning(configs(**changes))
    assert len([line for line in told if line.startswith(f"{name} = ") and "has no effect" in line]) == 1


IMPOSSIBLE: list[tuple[dict[str, Any], str]] = [
    ({"data__N": 64}, "N: 64 became 128, the side of the patterns"),
    ({"data__C": 5, "data__grid_size": (1, 5)}, "C: 5 became 4"),
    ({"data__C": 9, "data__K": 2}, "K: 2 became 8"),
    ({"data__neighbor_function": "Psychic"}, "neighbor_function = Psychic is not known"),
    ({"model__amp_activation": "tanh"}, "amp_activation = tanh is not known"),
    ({"model__loss_function": "Huber"}, "loss_function = Huber is not known"),
    ({"model__amp_loss": "SSIM"}, "amp_loss = SSIM has no effect"),
    ({"training__device": "tpu"}, "device = tpu is not known"),
    ({"training__scheduler": "OneCycle"}, "scheduler = OneCycle is not known"),
    ({"training__n_devices": 2, "training__strategy": "ddp"}, "ddp became ddp_spawn"),
    ({"training__n_devices": 2, "training__strategy": "horovod"}, "strategy = horovod is not known"),
    (
        {
            "model__amp_loss": "Total_Variation",
            "model__amp_loss_coeff": 0.2,
            "model__phase_loss": "Total_Variation",
        },
        "amp_loss_coeff: 0.2 became 1.0, because the variation has one weight",
    ),
    ({"inference__middle_trim": 200}, "middle_trim: 200 became 128"),
    ({"inference__patch_weighting": "random"}, "patch_weighting = random is not known"),
]


@pytest.mark.parametrize(("changes", "said"), IMPOSSIBLE)
def test_an_impossible_value_is_adapted_and_told(changes: dict[str, Any], said: str) -> None:
    _, told = meaning(configs(**changes))
    assert [line for line in told if said in line], told


def test_devices_that_are_not_there_do_not_become_cpu_processes() -> None:
    asked = configs(training__n_devices=4)
    meant = translation.for_training(asked, n_pixels=128, n_patterns=100, facts=MachineFacts())
    assert (meant.execution["devices"], meant.execution["strategy"]) == (1, "auto")
    assert meant.notes == ("n_devices: 4 became 1, because this machine has no CUDA device",)


def test_no_strategy_starts_the_calling_program_again() -> None:
    """Lightning's own `auto`, too, is `ddp` for several devices: it runs sys.argv anew."""
    for strategy in get_args(Strategy):
        asked = configs(training__n_devices=2, training__strategy=strategy)
        meant = translation.for_training(asked, n_pixels=128, n_patterns=100, facts=FOUR_GPUS)
        if strategy in ("ddp_spawn", "ddp_fork", "ddp_notebook"):
            assert (meant.execution["strategy"], meant.notes) == (strategy, ())
        else:
            assert meant.execution["strategy"] == "ddp_spawn"
            assert meant.notes == (
                f"strategy: {strategy} became ddp_spawn, because {strategy} would start Ptychodus again",
            )


def test_a_strategy_for_devices_that_are_not_there_is_told() -> None:
    asked = configs(training__n_devices=4, training__strategy="ddp_fork")
    meant = translation.for_training(asked, n_pixels=128, n_patterns=100, facts=MachineFacts())
    assert "strategy = ddp_fork has no effect: there is one device" in meant.notes


@pytest.mark.parametrize(
    ("n", "modes", "memory_mb", "batch"),
    [(64, 1, 8000, 1000), (256, 1, 8000, 225), (512, 1, 4000, 28), (256, 10, 8000, 61), (512, 10, 100, 1)],
)
def test_an_inference_batch_fits_into_memory(n: int, modes: int, memory_mb: int, batch: int) -> None:
    facts = MachineFacts(memory_mb=64_000, memory_limit_mb=memory_mb)
    meant = translation.for_inference(configs(), ScienceConfig(), n, facts, n_modes=modes)
    assert meant.execution["inference_batch_size"] == batch
    told = [line for line in meant.notes if line.startswith(f"batch_size: 1000 became {batch}")]
    assert len(told) == (batch != 1000)


def test_a_value_out_of_range_is_an_error_with_its_place() -> None:
    with pytest.raises(SettingsError, match="epochs = 0 is not allowed"):
        translation.to_science(configs(training__epochs=0))
    with pytest.raises(SettingsError, match="learning_rate") as caught:
        translation.settings_for({"learning_rate": 0.0}, "train")
    assert "Ptychodus" in str(caught.value)


OUT_OF_RANGE: list[tuple[dict[str, Any], str, tuple[str, ...]]] = [
    ({"training__epochs": 0}, "epochs = 0 is not allowed", ("Ptychodus, epochs", "epochs = 50")),
    (
        {"model__n_filters_scale": 0.1},
        "n_filters_scale = 0.1 is not allowed",
        ("Ptychodus, n_filters_scale", "ModelConfig.n_filters", "came to 1", "n_filters_scale = 2"),
    ),
    (
        {"data__neighbor_function": "Min_dist", "data__min_neighbor_distance": 9.0},
        "min_neighbor_distance = 9.0, max_neighbor_distance = 3.0 is not allowed",
        ("Ptychodus, min_neighbor_distance, max_neighbor_distance", "from 9.0 to 3.0", "distance = 0.0"),
    ),
    (
        {"model__amp_loss": "Mean_Deviation", "model__amp_loss_coeff": -1.0},
        "amp_loss = Mean_Deviation, amp_loss_coeff = -1.0 is not allowed",
        ("Ptychodus, amp_loss, amp_loss_coeff", "a number at least 0"),
    ),
    (
        {"training__finetune_val_split": -0.5},
        "finetune_val_split = -0.5 is not allowed",
        ("Ptychodus, finetune_val_split", "a number at least 0", "finetune_val_split = 0.05"),
    ),
    ({"data__x_bounds": (0.5, 0.2)}, "x_bounds = ", ("Ptychodus, x_bounds", "0 <= low < high <= 1")),
]


@pytest.mark.parametrize(("changes", "what", "parts"), OUT_OF_RANGE)
def test_a_range_is_told_in_the_words_of_ptychodus(
    changes: dict[str, Any], what: str, parts: tuple[str, ...]
) -> None:
    with pytest.raises(SettingsError) as caught:
        translation.for_training(configs(**changes), n_pixels=128, n_patterns=100, facts=FOUR_GPUS)
    (finding,) = caught.value.findings
    assert finding.what.startswith(what)
    for part in parts:
        assert part in finding.render()


def test_settings_out_of_range_bear_the_names_that_ptychodus_has() -> None:
    for name, keyword in (("devices", "n_devices"), ("inference_batch_size", "batch_size")):
        with pytest.raises(SettingsError) as caught:
            translation.settings_for({name: 0}, "train")
        assert str(caught.value).startswith(f"{keyword} = 0 is not allowed")


@pytest.mark.parametrize(("asked", "patterns", "held"), [(1.0, 100, 0.99), (0.99, 10, 0.9), (0.5, 10, 0.5)])
def test_something_is_left_to_learn_from(asked: float, patterns: int, held: float) -> None:
    """The window allows a finetune_val_split of 1."""
    given = configs(data__C=1, training__finetune_val_split=asked)
    meant = translation.for_training(given, n_pixels=128, n_patterns=patterns, facts=FOUR_GPUS)
    assert meant.science.training.val_fraction == pytest.approx(held)
    told = [line for line in meant.notes if line.startswith(f"finetune_val_split: {asked} became {held}")]
    assert len(told) == (asked != held)


def test_a_small_scan_is_not_validated_on_nothing() -> None:
    meant = translation.for_training(configs(data__C=1), n_pixels=128, n_patterns=9, facts=FOUR_GPUS)
    assert meant.science.training.val_fraction == 0
    assert "finetune_val_split: 0.05 became 0, because the scan is small" in meant.notes


def test_a_model_of_the_command_line_has_keywords_that_mean_the_same() -> None:
    science = ScienceConfig(
        data=ScienceData(N=64, gridsize=2, grouping="distance", neighbor_count=7, max_neighbor_distance_px=9),
        model=ScienceModel(n_filters=40, amp_activation="softplus"),
        training=ScienceTraining(loss="poisson", epochs=3, tv_weight=0.5),
    )
    back = translation.to_science(translation.from_science(science), science)
    assert back == science
    plain = ScienceConfig(data=ScienceData(N=64))
    assert translation.to_science(translation.from_science(plain), plain) == plain


# --- precedence


def test_what_ptychodus_sends_wins_and_the_loser_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PTYCHO_EXEC_BATCH_SIZE", "64")
    monkeypatch.setenv("PTYCHO_EXEC_NUM_WORKERS", "0")
    meant = translation.for_training(
        configs(training__num_workers=0), n_pixels=128, n_patterns=100, facts=FOUR_GPUS
    )
    settings = translation.settings_for(meant.execution, "train")
    assert settings.batch_size == 16
    assert settings.origins["batch_size"].describe() == "argument Ptychodus"
    assert list(translation.shadowed(settings)) == [
        "batch_size=64 from environment PTYCHO_EXEC_BATCH_SIZE has no effect: Ptychodus sends 16"
    ]


def test_variables_and_files_fill_in_what_ptychodus_does_not_send(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PTYCHO_EXEC_SEED", "7")
    Path("ptycho_exec.toml").write_text('precision = "bf16-mixed"\n')
    settings = translation.settings_for({"batch_size": 4, "num_workers": 2}, "train")
    assert settings.persistent_workers
    assert not translation.settings_for({"num_workers": 0}, "train").persistent_workers
    assert (settings.seed, settings.precision, settings.on_unsupported) == (7, "bf16-mixed", "adapt")
    assert settings.origins["seed"].describe() == "environment PTYCHO_EXEC_SEED"
    assert "ptycho_exec.toml" in settings.origins["precision"].describe()
    monkeypatch.setenv("PTYCHO_EXEC_ON_UNSUPPORTED", "error")
    assert translation.settings_for({}, "infer").on_unsupported == "error"


# --- checkpoints


def checkpoint(path: Path, scores: dict[str, float], *, mode: str = "min", age_s: float = 0.0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    state = {"best_k_models": {f"/elsewhere/{name}": torch.tensor(score) for name, score in scores.items()}}
    key = f"BestCheckpoints{{'monitor': 'val_loss', 'mode': '{mode}'}}"
    torch.save({"state_dict": {"w": torch.zeros(1)}, "callbacks": {key: state}}, path)
    os.utime(path, (time.time() - age_s,) * 2)
    return path


def test_the_best_checkpoint_is_found_by_its_recorded_metric(tmp_path: Path) -> None:
    assert find_best_checkpoint(tmp_path) is None
    scores = {"a.ckpt": 0.3, "b.ckpt": 0.1, "c.ckpt": 0.2}
    files = {name: checkpoint(tmp_path / "run" / name, scores) for name in scores}
    last = checkpoint(tmp_path / "run" / "last.ckpt", scores)
    assert find_best_checkpoint(tmp_path) == files["b.ckpt"]
    files["b.ckpt"].write_bytes(files["b.ckpt"].read_bytes()[:100])
    assert find_best_checkpoint(tmp_path) == files["c.ckpt"]
    for name in ("a.ckpt", "c.ckpt"):
        files[name].unlink()
    assert find_best_checkpoint(tmp_path) == last


def test_larger_is_better_where_the_checkpoints_say_so(tmp_path: Path) -> None:
    scores = {"a.ckpt": 0.3, "b.ckpt": 0.1}
    files = [checkpoint(tmp_path / name, scores, mode="max") for name in scores]
    assert find_best_checkpoint(tmp_path) == files[0]


def test_of_equal_checkpoints_the_newest_wins(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    scores = {"a.ckpt": 0.1, "b.ckpt": 0.1, "nan.ckpt": float("nan")}
    checkpoint(tmp_path / "a.ckpt", scores, age_s=100)
    newest = checkpoint(tmp_path / "b.ckpt", scores, age_s=50)
    checkpoint(tmp_path / "nan.ckpt", scores)
    (tmp_path / "code.ckpt").write_bytes(pickle.dumps(print, protocol=2))
    assert find_best_checkpoint(tmp_path) == newest
    assert "code.ckpt is passed over" in caplog.text


def test_numpy_keywords_leave_a_checkpoint_readable(tmp_path: Path) -> None:
    """Lightning and Ptychodus read it with `weights_only=True`, which takes Python's own types alone."""
    asked = configs(
        training__learning_rate=np.float64(2e-3),
        training__epochs=np.int64(7),
        data__x_bounds=[0.2, np.float32(0.5)],
        model__probe_mask=np.ones((2, 2)),
    )
    torch.save(plain_keywords(asked), tmp_path / "some.ckpt")
    back = Configs.from_dict(torch.load(tmp_path / "some.ckpt", weights_only=True))
    assert (back.training.learning_rate, back.training.epochs) == (2e-3, 7)
    assert back.data.x_bounds == (0.2, 0.5)
    assert back.model.probe_mask is None


def test_a_checkpoint_without_weights_is_not_the_best(tmp_path: Path) -> None:
    scores = {"empty.ckpt": 0.1, "full.ckpt": 0.2}
    torch.save({"note": "another program's"}, tmp_path / "empty.ckpt")
    assert find_best_checkpoint(tmp_path) is None
    assert find_best_checkpoint(tmp_path.parent / "nowhere") is None
    full = checkpoint(tmp_path / "full.ckpt", scores)
    assert find_best_checkpoint(tmp_path) == full


# --- epochs


def test_the_remaining_time_is_what_the_done_epochs_took(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Also after a resume, where the first epochs took no time of this training."""
    now = [100.0]
    monkeypatch.setattr("ptycho_torch.ptychodus.epochs.time.monotonic", lambda: now[0])
    news, metrics = EpochNews(), {"train_loss": 0.5}
    caplog.set_level(logging.INFO)
    news.on_train_start(None, None)
    for epoch in (4, 5, 6):
        now[0] += 8.0
        trainer = SimpleNamespace(current_epoch=epoch, max_epochs=10, callback_metrics=metrics)
        news.on_train_epoch_end(trainer, None)
    assert caplog.messages == [
        f"epoch {epoch} of 10: train_loss 0.5; {left} s left" for epoch, left in ((5, 40), (6, 32), (7, 24))
    ]


# --- training data


def test_exported_files_come_before_the_pair(tmp_path: Path) -> None:
    scan = simulate_scan(n=16, patterns=25, photons=1e5, seed=3)
    with pytest.raises(DataError, match="nothing to learn from"):
        find_sources(tmp_path)
    write_ptychodus(scan, tmp_path)
    assert find_sources(tmp_path) == [tmp_path]
    write_training(scan, tmp_path / "training_data.h5")
    assert find_sources(tmp_path) == [tmp_path / "training_data.h5"]
    np.savez(tmp_path / "noise.npz", ideal=np.zeros(3))
    (tmp_path / "broken.npz").write_bytes(b"PK")
    write_npz(scan, tmp_path / "b.npz")
    write_npz(scan, tmp_path / "a.npz")
    assert find_sources(tmp_path) == [tmp_path / "a.npz", tmp_path / "b.npz"]


def test_labels_are_the_object_under_each_pattern() -> None:
    """As the network sees them: on whole pixels, after the training's own sub-pixel shift."""
    scan = simulate_scan(n=16, patterns=25, photons=1e5, seed=3)
    truth = scan.object_guess
    assert truth is not None
    labeled = with_labels(scan, phase_free=False)
    grid, rest = physics.split_position(torch.from_numpy(scan.positions_px), 16)
    seen = physics.shift_subpixel(torch.from_numpy(np.asarray(labeled.labels)), rest).numpy()
    corners = torch.round(grid - 7.5).int().tolist()
    true = np.stack([truth[y : y + 16, x : x + 16] for y, x in corners])
    assert np.linalg.norm(seen - true) < 0.04 * np.linalg.norm(true)
    beside = np.stack([truth[y : y + 16, x + 1 : x + 17] for y, x in corners])
    assert np.linalg.norm(seen - beside) > 0.1 * np.linalg.norm(true)


def test_phase_subtraction_takes_the_mean_phase_out_of_each_label() -> None:
    scan = simulate_scan(n=16, patterns=25, photons=1e5, seed=3)
    kept, free = (np.asarray(with_labels(scan, phase_free=flag).labels) for flag in (False, True))
    assert scan.probe is not None
    light = (np.abs(scan.probe) ** 2).sum(axis=0)
    assert np.abs(np.angle((kept * light).sum(axis=(1, 2)))).max() > 0.05
    np.testing.assert_allclose(np.angle((free * light).sum(axis=(1, 2))), 0, atol=1e-5)
    np.testing.assert_allclose(np.abs(free), np.abs(kept), rtol=1e-5)


def test_a_flat_object_is_no_label(tmp_path: Path) -> None:
    scan = simulate_scan(n=16, patterns=25, photons=1e5, seed=3)
    flat = replace(scan, object_guess=np.ones(scan.canvas_shape, np.complex64))
    write_npz(flat, tmp_path / "a.npz")
    with pytest.raises(DataError, match="a flat one"):
        read_training_data(tmp_path, ScienceData(), labeled=True, phase_free=True)
    assert read_training_data(tmp_path, ScienceData(), labeled=False, phase_free=True).labels is None


def test_several_scans_are_one_training_without_common_groups(tmp_path: Path) -> None:
    scans = [simulate_scan(n=16, patterns=36, photons=1e5, seed=seed) for seed in (1, 2)]
    for scan, name in zip(scans, "ab", strict=True):
        write_npz(scan, tmp_path / f"{name}.npz")
    from ptycho_torch.data.containers import dataset_of

    both = read_training_data(tmp_path, ScienceData(gridsize=2), labeled=True, phase_free=False)
    assert len(both) == 72
    amplitude = np.concatenate([scan.amplitude(np.arange(36)) for scan in scans])
    np.testing.assert_array_equal(both.amplitude(np.arange(72)), amplitude)
    groups = dataset_of(both, ScienceData(gridsize=2), 0).__getitems__(range(72))["index"] // 36
    assert bool((groups == groups[:, :1]).all())
    lone = with_labels(scans[1], phase_free=False)
    np.testing.assert_array_equal(both.label_patches([40]), lone.label_patches([4]))


def test_scans_that_cannot_be_one_training_are_refused(tmp_path: Path) -> None:
    write_npz(simulate_scan(n=16, patterns=36, photons=1e5, seed=1), tmp_path / "a.npz")
    write_npz(simulate_scan(n=32, patterns=36, photons=1e5, seed=2), tmp_path / "b.npz")
    with pytest.raises(DataError, match="patterns of 16 and of 32 pixels"):
        read_training_data(tmp_path, ScienceData(), labeled=False, phase_free=True)
    other = simulate_scan(n=16, patterns=36, photons=1e5, seed=2, probe_curvature_rad=-2.0)
    write_npz(other, tmp_path / "b.npz")
    with pytest.raises(DataError, match="the probes of these training files differ"):
        read_training_data(tmp_path, ScienceData(), labeled=False, phase_free=True)
    write_npz(simulate_scan(n=16, patterns=4, photons=1e5, seed=2), tmp_path / "b.npz")
    for grouping, keyword in (("nearest", "lower K,"), ("quadrant", "lower K_quadrant,")):
        data = ScienceData(gridsize=2, grouping=grouping)
        with pytest.raises(DataError, match="too few beside others") as caught:
            read_training_data(tmp_path, data, labeled=False, phase_free=True)
        assert keyword in str(caught.value)


def counted(seed: int, *, dtype: Any = np.uint16, patterns: int = 36) -> ScanData:
    """Return a scan whose patterns are stored as counts."""
    scan = simulate_scan(n=16, patterns=patterns, photons=1e4, seed=seed)
    counts = np.round(scan.amplitude(np.arange(patterns)) ** 2).astype(dtype)
    return replace(scan, patterns=counts, domain="intensity")


def test_counts_of_several_scans_stay_counts(tmp_path: Path) -> None:
    """Training judges its loss above the noise of counts, and knows that noise of counts only."""
    scans = [counted(1), counted(2, dtype=np.int32)]
    for scan, name in zip(scans, "ab", strict=True):
        write_npz(scan, tmp_path / f"{name}.npz")
    both = read_training_data(tmp_path, ScienceData(), labeled=False, phase_free=True)
    assert both.holds_counts
    np.testing.assert_array_equal(both.patterns, np.concatenate([scan.patterns for scan in scans]))
    measured = counted(3).amplitude(np.arange(36))
    write_npz(replace(counted(3), patterns=measured, domain="amplitude"), tmp_path / "c.npz")
    three = read_training_data(tmp_path, ScienceData(), labeled=False, phase_free=True)
    assert (three.domain, three.holds_counts, three.patterns.dtype) == ("amplitude", False, np.float32)
    np.testing.assert_array_equal(three.amplitude(np.arange(72)), both.amplitude(np.arange(72)))


def test_counts_without_a_common_integer_stay_counts() -> None:
    both = joined([counted(1, dtype=np.uint64), counted(2, dtype=np.int16)], Path())
    assert both.holds_counts


def test_a_pixel_that_is_bad_in_one_scan_is_bad_in_all() -> None:
    scans = []
    for seed, flat in ((1, 3), (2, 77)):
        scan, good = counted(seed), np.ones((16, 16), dtype=bool)
        good.flat[flat] = False
        scan.patterns[:, 0, 3] = scan.patterns[:, 77 // 16, 77 % 16] = 9
        scans.append(replace(scan, good_pixels=good))
    both = joined(scans, Path())
    assert both.bad_flat.tolist() == [3, 77]
    assert not both.amplitude(np.arange(72)).reshape(72, -1)[:, [3, 77]].any()


def test_joined_scans_are_too_far_apart_to_be_neighbors() -> None:
    """Scans that are wide beside a pattern, so that the margin of a canvas alone would not do."""
    scans = [counted(seed, patterns=144) for seed in (1, 2)]
    both = joined(scans, Path())
    first, second = both.positions_px[:144], both.positions_px[144:]
    apart = second[:, 0].min() - first[:, 0].max()
    reach = max(np.ptp(scan.positions_px, axis=0).max() for scan in scans)
    assert apart > np.sqrt(2) * reach, "every pattern of the own scan is nearer"
    np.testing.assert_allclose(second - second[0], scans[1].positions_px - scans[1].positions_px[0])


def test_one_warning_lists_everything(caplog: pytest.LogCaptureFixture) -> None:
    from ptycho_torch.api.base_api import tell

    assert tell("training", ()) is None
    with caplog.at_level(logging.WARNING):
        text = tell("training", ("a has no effect: b", "c became d", "c became d"))
    assert len(caplog.records) == 1
    assert text is not None
    assert text.count("\n") == 2
