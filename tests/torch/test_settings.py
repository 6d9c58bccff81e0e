"""The science of a run from every source, with origins, and how it meets a trained model."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from ptycho_exec.cli.reference import json_schema, toml_value
from ptycho_exec.errors import SettingsError
from ptycho_exec.fields.spec import field_specs, format_value
from ptycho_exec.settings import ExecutionSettings
from ptycho_exec.sources.origins import Kind
from ptycho_exec.sources.resolve import Request, resolve, resolve_together
from ptycho_torch.cli import main
from ptycho_torch.config import DataConfig, InferenceConfig, ModelConfig, ScienceConfig, TrainingConfig
from ptycho_torch.factory import inference_science, overruled
from ptycho_torch.settings import SECTIONS, ScienceSettings, changed, flat

SPECS = field_specs(ScienceSettings)
SAMPLES: dict[str, Any] = {
    "map": {"patterns": "data"},
    "pixel_size_m": 1e-8,
    "scan_step": 2.5,
    "scan_shape": [3, 4],
    "scan_rotation_deg": 30.0,
    "dark_file": "dark.npy",
    "pedestal": 10.0,
    "gain": 37.0,
    "threshold": 1.5,
    "mask_file": "mask.npy",
    "crop": 24,
    "pad": 48,
    "bin": 2,
    "position_affine": [1.0, 0.5, 0.0, 1.0],
    "probe": "estimate",
    "drop": "far,3-7",
    "N": 32,
    "gridsize": 2,
    "neighbor_count": 9,
    "min_neighbor_distance_px": 1.5,
    "max_neighbor_distance_px": 9.5,
    "n_groups": 7,
    "x_bounds": [0.25, 0.75],
    "y_bounds": [0.0, 0.5],
    "n_patterns": 5,
    "n_filters": 8,
    "depth": 3,
    "modulus_updates": 2,
    "prediction_updates": 5,
    "epochs": 3,
    "tv_weight": 0.5,
    "mean_deviation_weight": 0.25,
    "val_fraction": 0.125,
    "refine": 4,
    "probe_modes": 3,
    "position_limit_px": 2.5,
}
"""A value for each field that is not its default; booleans and words are derived."""
COMPANIONS: dict[str, dict[str, Any]] = {
    "min_neighbor_distance_px": {"grouping": "distance"},
    "max_neighbor_distance_px": {"grouping": "distance"},
    "positions_order": {"map": {"positions": "scan"}},
    "scan_shape": {"scan_step": 1.0},
    "scan_rotation_deg": {"scan_step": 1.0},
    "start": {"refine": 1},
    "likelihood": {"refine": 1},
    "denoise": {"refine": 1},
    "refine_probe": {"refine": 1},
    "probe_modes": {"refine": 1},
    "refine_positions": {"refine": 1},
    "position_limit_px": {"refine": 1, "refine_positions": True},
    "refine_background": {"refine": 1},
}


def sample(name: str) -> Any:
    spec = SPECS[name]
    return SAMPLES.get(name, next((word for word in spec.choices if word != spec.default), None))


def _file(path: str, head: str = "", **arguments: str) -> Callable[[str], dict[str, Any]]:
    def put(name: str) -> dict[str, Any]:
        Path(path).write_text(f"{head}\n{name} = {toml_value(sample(name))}\n")
        return dict(arguments)

    return put


def _dotenv(name: str) -> dict[str, Any]:
    Path(".env").write_text(f"{SPECS[name].variable}='{format_value(sample(name))}'\n")
    return {}


SOURCES: dict[Kind, Callable[[str], dict[str, Any]]] = {
    Kind.ARGUMENT: lambda name: {"arguments": {name: sample(name)}},
    Kind.OVERRIDE: lambda name: {"overrides": {name: sample(name)}},
    Kind.FLAG: lambda name: {"flags": {name: format_value(sample(name))}},
    Kind.ENVIRONMENT: lambda name: {"environ": {SPECS[name].variable: format_value(sample(name))}},
    Kind.DOTENV: _dotenv,
    Kind.SETTINGS_FILE: _file("run.toml", settings_file="run.toml"),
    Kind.PROJECT_FILE: _file("ptycho_torch.toml"),
    Kind.PYPROJECT: _file("pyproject.toml", "[tool.ptycho_torch]"),
    Kind.PROFILE: _file("ptycho_torch.toml", "[profiles.mine]", profile="mine"),
    Kind.FACTORY: lambda name: {"factory_defaults": {name: sample(name)}},
}


@pytest.fixture(autouse=True)
def _own_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("word", ["nan", "inf", "-inf"])
@pytest.mark.parametrize(
    "name", [name for name in SPECS if "float" in str(ScienceSettings.model_fields[name].annotation)]
)
def test_numbers_are_finite(name: str, word: str) -> None:
    text = ",".join([word] * {"position_affine": 4, "center": 2, "x_bounds": 2, "y_bounds": 2}.get(name, 1))
    settings = {"flags": {name: (text,)}, "environ": {}, "factory_defaults": COMPANIONS.get(name, {})}
    with pytest.raises(SettingsError) as caught:
        ScienceSettings.from_resolution(resolve(Request(ScienceSettings, **settings)))
    assert str(caught.value).startswith(name)
    assert word in str(caught.value)


@pytest.mark.parametrize("kind", SOURCES, ids=str)
@pytest.mark.parametrize("name", SPECS)
def test_every_field_from_every_source(name: str, kind: Kind) -> None:
    assert sample(name) not in (None, SPECS[name].default)
    request = {"environ": {}, **SOURCES[kind](name)}
    companions = COMPANIONS.get(name, {})
    request["factory_defaults"] = {**companions, **request.get("factory_defaults", {})}
    settings = ScienceSettings.from_resolution(resolve(Request(ScienceSettings, **request)))
    expected = tuple(sample(name)) if isinstance(sample(name), list) else sample(name)
    assert flat(settings.config)[name] == expected
    assert settings.config.origins[name].kind is kind
    others = {other for other, origin in settings.origins.items() if origin.kind is not Kind.DEFAULT}
    assert others == {name, *companions}


def test_its_fields_are_those_of_the_four_configs_in_their_order() -> None:
    parts = (DataConfig, ModelConfig, TrainingConfig, InferenceConfig)
    assert list(SPECS) == [name for part in parts for name in part.model_fields]
    assert tuple(SECTIONS.values()) == parts
    assert ScienceSettings.from_values({}).config == ScienceConfig()
    assert not set(SPECS) & set(field_specs(ExecutionSettings))


@pytest.mark.parametrize(
    "values",
    [
        {"gridsize": 3, "neighbor_count": 2},
        {"max_neighbor_distance_px": 3.0},
        {"grouping": "distance", "min_neighbor_distance_px": 3.0, "max_neighbor_distance_px": 1.0},
        {"scan_rotation_deg": 30.0},
        {"scan_shape": (3, 4)},
        {"scan_step": 3.0, "map": {"positions": "scan"}},
        {"positions_order": "xy"},
        {"orient": "auto", "position_affine": (1.0, 0.1, 0.0, 1.0)},
        {"start": "flat"},
        {"likelihood": "counts"},
        {"refine_probe": True},
        {"probe_modes": 2},
        {"refine_positions": True},
        {"refine_background": True},
        {"refine": 2, "probe_modes": 2, "refine_probe": False},
        {"refine": 2, "position_limit_px": 1.0},
        {"probe_trainable": True, "loss": "supervised"},
    ],
    ids=str,
)
def test_rules_between_fields_name_both_sides_and_the_remedy(values: dict[str, Any]) -> None:
    with pytest.raises(SettingsError) as caught:
        ScienceSettings.from_values(values)
    (finding,) = caught.value.findings
    assert finding.code == "conflict"
    assert any(name in finding.where for name in values)
    assert finding.fix.startswith("choose ")


CANDIDATES: list[Any] = [
    *(None, True, False, 0, 1, 2, 3, 7, 64, -1, 10**12, 8.0, 0.5, 1.0, 1.5, -0.5, 101, 5000),
    *("", "none", "NULL", "auto", "8", "true", "x", "mae", "distance", "probe", "first", "hann", "flat"),
    *([], [0.0, 1.0], [0, 1], [0.5, 0.25], [0.1, 0.2, 0.3], ["0", "1"], {}, [1]),
]


@pytest.mark.parametrize("name", SPECS)
def test_the_schema_accepts_what_the_program_accepts(name: str) -> None:
    validator = Draft202012Validator(json_schema(ScienceSettings))
    companions = COMPANIONS.get(name, {})
    ordered = name.endswith("_bounds")  # a rule between two numbers of one list, which JSON schema cannot say
    for value in [*CANDIDATES, sample(name), *SPECS[name].choices]:
        if ordered and isinstance(value, list) and value == [0.5, 0.25]:
            continue
        try:
            ScienceSettings.from_values({**companions, name: value})
            accepted = True
        except SettingsError as error:
            accepted = all(finding.code == "conflict" for finding in error.findings)
        assert validator.is_valid({**companions, name: value}) == accepted, (name, value)


# --- both classes in one run -----------------------------------------------------------------------------


def together(**where: Any) -> tuple[ExecutionSettings, ScienceSettings]:
    how, what = resolve_together(Request(ExecutionSettings, **where), Request(ScienceSettings, **where))
    return ExecutionSettings.from_resolution(how), ScienceSettings.from_resolution(what)


def test_one_named_file_holds_both_and_profiles_of_both() -> None:
    Path("run.toml").write_text("epochs = 20\nseed = 7\n[profiles.night]\ngridsize = 2\nbatch_size = 32\n")
    how, what = together(settings_file="run.toml", profile="night")
    assert (how.seed, how.batch_size, what.epochs, what.gridsize) == (7, 32, 20, 2)
    assert (how.notices, what.notices) == ((), ())
    assert what.origins["gridsize"].describe().startswith("profile:night")


def test_a_profile_is_known_when_one_of_them_knows_it() -> None:
    how, what = together(profile="ci")
    assert how.logger_backend is None or how.origins["logger_backend"].kind is Kind.PROFILE
    assert what.epochs == 60
    how, what = resolve_together(
        *(Request(model, profile="cj") for model in (ExecutionSettings, ScienceSettings))
    )
    (finding,) = (*how.errors, *what.errors)
    assert (finding.what, finding.expected) == ("unknown profile 'cj'", "ci")


def test_the_controls_of_one_count_for_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("run.toml").write_text("epochs = 20\nseed = 7\n")
    monkeypatch.setenv("PTYCHO_TORCH_SETTINGS_FILE", "run.toml")
    how, what = together()
    assert (how.seed, what.epochs) == (7, 20)


def test_a_name_of_neither_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("run.toml").write_text("epohcs = 20\n")
    with pytest.raises(SettingsError, match="expected: epochs"):
        together(settings_file="run.toml")


# --- with a trained model ---------------------------------------------------------------------------------

TRAINED = ScienceConfig(
    data=DataConfig(N=32, gridsize=2, n_patterns=7),
    model=ModelConfig(depth=1),
    inference=InferenceConfig(window="hann"),
)


def test_what_the_network_was_trained_with_wins_over_files_and_is_said(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PTYCHO_TORCH_GRIDSIZE", "3")
    Path("ptycho_torch.toml").write_text("depth = 1\nrefine = 2\n")
    science = inference_science(TRAINED, "run/model.ckpt")
    assert (science.data.gridsize, science.model.depth, science.inference.refine) == (2, 1, 2)
    assert science.data.n_patterns is None
    assert science.origins["gridsize"].describe() == "recorded run/model.ckpt"
    assert science.inference.window == "hann"
    assert science.origins["window"].reason == "as in the training"
    assert [note.what for note in overruled(science)] == [
        "gridsize = 3 (environment PTYCHO_TORCH_GRIDSIZE) has no effect: the model has 2"
    ]


def test_a_flag_wins_over_the_trained_model() -> None:
    asked = ScienceSettings.from_resolution(resolve(Request(ScienceSettings, flags={"gridsize": "1"})))
    science = inference_science(TRAINED, "run/model.ckpt", asked)
    assert (science.data.gridsize, science.model.depth) == (1, 1)
    assert [other.kind for other in science.origins["gridsize"].shadowed] == [Kind.DEFAULT]


def test_a_derived_value_says_why() -> None:
    science = changed(ScienceSettings.from_values({}).config, "data", {"N": 64}, "side of the probe")
    assert (science.data.N, science.origins["N"].reason) == (64, "side of the probe")
    assert science.origins["N"].shadowed[0].kind is Kind.DEFAULT
    assert not changed(ScienceConfig(), "data", {"N": 64}, "x").origins


# --- by the command -----------------------------------------------------------------------------------------


def test_show_and_explain(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PTYCHO_TORCH_EPOCHS", "7")
    assert main(["show", "--changed", "--loss", "poisson"]) == 0
    shown = capsys.readouterr().out
    assert "epochs  7" in shown
    assert "environment PTYCHO_TORCH_EPOCHS" in shown
    assert "flag --loss" in shown
    assert main(["explain", "epochs", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["settings"]["epochs"]["value"] == 7
    assert main(["show", "--format", "toml", "--changed"]) == 0
    Path("frozen.toml").write_text(capsys.readouterr().out)
    monkeypatch.delenv("PTYCHO_TORCH_EPOCHS")
    assert ScienceSettings(settings_file="frozen.toml").epochs == 7


def test_the_starter_file_sets_nothing_and_its_schema_takes_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["init"]) == 0
    assert ScienceSettings() == ScienceSettings.from_values({})
    Path("ptycho_torch.toml").write_text(Path("ptycho_torch.toml").read_text().replace("# epochs", "epochs"))
    assert ScienceSettings().origins["epochs"].kind is Kind.PROJECT_FILE
    assert main(["schema"]) == 0
    out = capsys.readouterr().out
    assert set(SPECS) <= set(json.loads(out[out.index("{") :])["properties"])


@pytest.mark.slow
def test_a_run_prints_and_keeps_the_origins(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(["simulate", "--out", "s.npz", "--n=32", "--patterns=40"]) == 0
    Path("run.toml").write_text("epochs = 1\nn_filters = 4\nbatch_size = 8\n")
    monkeypatch.setenv("PTYCHO_TORCH_DEPTH", "1")
    assert main(["train", "s.npz", "--out", "r", "--settings", "run.toml"]) == 0
    printed = capsys.readouterr().out
    for words in ("environment PTYCHO_TORCH_DEPTH", "run.toml:1)", "run.toml:3)"):
        assert words in printed
    manifest = json.loads(Path("r/manifest.json").read_text())
    assert manifest["science"]["training"]["epochs"] == 1
    assert manifest["science_origins"]["depth"]["place"] == "PTYCHO_TORCH_DEPTH"
    monkeypatch.setenv("PTYCHO_TORCH_DEPTH", "2")
    monkeypatch.setenv("PTYCHO_EXEC_LEARNING_RATE", "0.5")
    assert main(["infer", "r", "s.npz", "--out", "o"]) == 0
    printed = capsys.readouterr().out
    assert "note: depth = 2 (environment PTYCHO_TORCH_DEPTH) has no effect: the model has 1" in printed
    assert "note: no effect in infer: learning_rate (environment PTYCHO_EXEC_LEARNING_RATE)" in printed
    assert main(["infer", "r", "s.npz", "--out", "p", "--accum-steps=4"]) == 2
    assert "--accum-steps has no effect in infer" in capsys.readouterr().err
