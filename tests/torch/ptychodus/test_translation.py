"""Where each keyword of Ptychodus goes, and what becomes of one that has no effect here."""

from __future__ import annotations

import logging
import re
from dataclasses import fields
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest

from ptycho_exec.errors import SettingsError
from ptycho_exec.fields.model import Strategy
from ptycho_exec.machine.facts import Gpu, MachineFacts
from ptycho_torch.config import DataConfig as ScienceData
from ptycho_torch.config import ModelConfig as ScienceModel
from ptycho_torch.config import ScienceConfig
from ptycho_torch.config import TrainingConfig as ScienceTraining
from ptycho_torch.factory import inference_science
from ptycho_torch.ptychodus import translation
from ptycho_torch.ptychodus.translation import KEYWORDS, SECTIONS, Configs
from ptycho_torch.settings import ScienceSettings
from tests.torch.ptychodus.keyword_sets import configs

SPEC = Path(__file__).parents[3] / "specs" / "ptychodus.md"


ALL_KEYWORDS = [(section, name) for section, rows in KEYWORDS.items() for name in rows]


FOUR_GPUS = MachineFacts(gpus=(Gpu(name="A100", memory_mb=40_000, capability="8.0", bf16=True),) * 4)


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


def test_what_becomes_of_values_that_nobody_changed_is_apart() -> None:
    small = translation.for_training(configs(), n_pixels=64, n_patterns=100, facts=FOUR_GPUS)
    assert (small.notes, small.usual) == ((), ("N: 128 became 64, the side of the patterns",))
    chosen = translation.for_training(configs(data__N=32), n_pixels=64, n_patterns=100, facts=FOUR_GPUS)
    assert (chosen.notes, chosen.usual) == (("N: 32 became 64, the side of the patterns",), ())
    assert translation.is_usual("accelerator: cuda became cpu, because", configs())
    assert not translation.is_usual("accelerator: mps became cpu, because", configs(training__device="mps"))
    assert not translation.is_usual("precision: 16-mixed became 32-true, because", configs())


def test_a_training_batch_does_not_make_a_reconstructions_a_choice() -> None:
    facts = MachineFacts(memory_mb=100)
    asked = configs(training__batch_size=4)
    meant = translation.for_inference(asked, ScienceConfig(), 256, facts, n_modes=1)
    assert (meant.notes, len(meant.usual)) == ((), 1)


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
    told = [line for line in meant.usual if line.startswith(f"batch_size: 1000 became {batch}")]
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
    assert "finetune_val_split: 0.05 became 0, because the scan is small" in meant.usual


def test_a_model_of_the_command_line_has_keywords_that_mean_the_same() -> None:
    science = ScienceConfig(
        data=ScienceData(N=64, gridsize=2, grouping="distance", neighbor_count=7, max_neighbor_distance_px=9),
        model=ScienceModel(n_filters=40, amp_activation="softplus"),
        training=ScienceTraining(loss="poisson", epochs=3, tv_weight=0.5),
    )
    back = translation.to_science(translation.from_science(science), science)
    assert back == science
    plain = ScienceConfig(data=ScienceData(N=64), training=ScienceTraining(loss="mae"))
    assert translation.to_science(translation.from_science(plain), plain) == plain


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


def test_science_of_variables_acts_in_a_reconstruction_or_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PTYCHO_TORCH_REFINE", "5")
    monkeypatch.setenv("PTYCHO_TORCH_PATCH_WEIGHTING", "uniform")
    monkeypatch.setenv("PTYCHO_TORCH_EPOCHS", "3")
    base = inference_science(ScienceConfig(), "the model")
    meant = translation.for_inference(configs(), base, 64, FOUR_GPUS, n_modes=1)
    assert meant.science.inference.refine == 5
    (lost,) = translation.unused_science(base, meant.science)
    assert lost.startswith(
        "patch_weighting=uniform from environment PTYCHO_TORCH_PATCH_WEIGHTING has no effect"
    )
    training = translation.for_training(configs(), n_pixels=64, n_patterns=100, facts=FOUR_GPUS)
    told = list(translation.unused_science(ScienceSettings().config, training.science))
    assert [line.split("=")[0] for line in told] == ["epochs", "patch_weighting", "refine"]
    assert "epochs=3 from environment PTYCHO_TORCH_EPOCHS has no effect: with Ptychodus it is 50" in told


def test_one_warning_lists_everything(caplog: pytest.LogCaptureFixture) -> None:
    from ptycho_torch.api.base_api import warn_user

    assert warn_user("training", (), configs()) is None
    caplog.set_level(logging.INFO)
    given = ("a has no effect: b", "c became d", "c became d", "accelerator: cuda became cpu, because")
    text = warn_user("training", given, configs(), ("N: 128 became 64",))
    usual, warning = caplog.records
    assert (usual.levelno, warning.levelno) == (logging.INFO, logging.WARNING)
    assert usual.getMessage().splitlines()[1:] == [
        "- Model Size: 128 became 64",
        "- Device: cuda became cpu, because",
    ]
    assert text is not None
    assert text.count("\n") == 2
