"""The precedence: every field from every source, the ladder up and down, and nothing misspelt passes."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from ptycho_exec.cli.reference import toml_value
from ptycho_exec.errors import SettingsError
from ptycho_exec.fields.spec import field_specs, format_value
from ptycho_exec.settings import ExecutionSettings
from ptycho_exec.sources.origins import Kind
from ptycho_exec.sources.resolve import (
    SOURCES,
    Factory,
    Request,
    override_settings,
    resolve,
    resolve_onto,
    resolve_under,
    resolve_values,
)

if TYPE_CHECKING:
    from conftest import Place

# One value per field that is not its default; the set equality below catches a field that is missing here.
SAMPLES: dict[str, Any] = {
    "accelerator": "cpu",
    "devices": [0, 2],
    "num_nodes": 3,
    "strategy": "ddp_spawn",
    "precision": "bf16-mixed",
    "matmul_precision": "medium",
    "compile": True,
    "num_threads": 2,
    "deterministic": "warn",
    "benchmark": True,
    "seed": 0,
    "batch_size": 7,
    "accum_steps": 4,
    "learning_rate": 0.0025,
    "scheduler": "WarmupCosine",
    "gradient_clip_val": 0.5,
    "gradient_clip_algorithm": "agc",
    "max_time": "01:02:03:04",
    "limit_train_batches": 0.25,
    "fast_dev_run": 2,
    "early_stop_patience": None,
    "num_workers": "auto",
    "pin_memory": False,
    "persistent_workers": True,
    "prefetch_factor": 5,
    "enable_checkpointing": False,
    "checkpoint_save_top_k": -1,
    "checkpoint_monitor_metric": "val/amplitude_mae",
    "checkpoint_mode": "max",
    "enable_progress_bar": True,
    "logger_backend": None,
    "log_every_n_steps": 1,
    "log_images_every_n_epochs": 9,
    "experiment_name": "beam time 7",
    "tracking_uri": "http://mlflow.example:5000",
    "inference_batch_size": 128,
    "middle_trim": 32,
    "pad_eval": True,
    "on_unsupported": "adapt",
    "drift": "warn",
}
# What two samples need beside them, because by themselves they contradict a default.
COMPANIONS: dict[str, dict[str, Any]] = {
    "benchmark": {"deterministic": False},
    "gradient_clip_algorithm": {"gradient_clip_val": 1.0},
}


@dataclass
class Source:
    """How a test puts one value into a source, and what its origin then says."""

    kind: Kind
    put: Callable[[Place, str, Any], dict[str, Any]]
    place: Callable[[Place, str], str]
    file: Callable[[Place], str | None] = lambda _: None


def variable(name: str) -> str:
    return f"PTYCHO_EXEC_{name.upper()}"


def _environment(place: Place, name: str, value: Any) -> dict[str, Any]:
    place.environ[variable(name)] = format_value(value)
    return {}


def _file(path: str, head: str = "", form: str = "toml", **request: str) -> Callable[..., dict[str, Any]]:
    def put(place: Place, name: str, value: Any) -> dict[str, Any]:
        lines = {
            "toml": f"{head}\n\n{name} = {toml_value(value)}\n",
            "yaml": f"{head}\n\n{name}: {json.dumps(value)}\n",
            "json": f'{{\n\n "{name}": {json.dumps(value)}\n}}\n',
            "env": f"\n# a comment\n{variable(name)}='{format_value(value)}'\n",
        }
        place.write(path, lines[form])
        return dict(request)

    return put


def _at(path: str) -> dict[str, Any]:
    return {
        "place": lambda place, _: f"{place.cwd / path}:3",
        "file": lambda place: str(place.cwd / path),
    }


USER_FILE = "../.config/ptycho_exec/settings.toml"

SOURCES_TESTED: dict[str, Source] = {
    "argument": Source(
        Kind.ARGUMENT, lambda _, n, v: {"arguments": {n: v}}, lambda _, __: "ExecutionSettings()"
    ),
    "override": Source(Kind.OVERRIDE, lambda _, n, v: {"overrides": {n: v}}, lambda _, __: "overrides"),
    "flag": Source(
        Kind.FLAG, lambda _, n, v: {"flags": {n: format_value(v)}}, lambda _, n: field_specs()[n].flag
    ),
    "environment": Source(Kind.ENVIRONMENT, _environment, lambda _, n: variable(n)),
    "dotenv": Source(
        Kind.DOTENV, _file(".env", form="env"), lambda _, n: variable(n), lambda p: str(p.cwd / ".env")
    ),
    "named TOML": Source(Kind.SETTINGS_FILE, _file("a.toml", settings_file="a.toml"), **_at("a.toml")),
    "named YAML": Source(
        Kind.SETTINGS_FILE, _file("a.yaml", form="yaml", settings_file="a.yaml"), **_at("a.yaml")
    ),
    "named JSON": Source(
        Kind.SETTINGS_FILE, _file("a.json", form="json", settings_file="a.json"), **_at("a.json")
    ),
    "project file": Source(Kind.PROJECT_FILE, _file("ptycho_exec.toml"), **_at("ptycho_exec.toml")),
    "pyproject": Source(
        Kind.PYPROJECT, _file("pyproject.toml", "[tool.ptycho_exec]"), **_at("pyproject.toml")
    ),
    "user file": Source(
        Kind.USER_FILE,
        _file(USER_FILE),
        lambda place, _: f"{place.home}/.config/ptycho_exec/settings.toml:3",
        lambda place: f"{place.home}/.config/ptycho_exec/settings.toml",
    ),
    "profile": Source(
        Kind.PROFILE,
        _file("ptycho_exec.toml", "[profiles.mine]", profile="mine"),
        lambda _, __: "profile:mine",
        lambda place: str(place.cwd / "ptycho_exec.toml"),
    ),
    "factory": Source(Kind.FACTORY, lambda _, n, v: {"factory_defaults": {n: v}}, lambda _, __: "factory"),
}


def test_every_field_has_a_sample_that_is_not_its_default() -> None:
    assert set(SAMPLES) == set(ExecutionSettings.model_fields)
    assert not [name for name, spec in field_specs().items() if spec.default == SAMPLES[name]]


def test_every_source_is_tested() -> None:
    tested = {source.kind for source in SOURCES_TESTED.values()}
    assert tested | {Kind.CONTEXT} == {kind for kind, _ in SOURCES}


@pytest.mark.parametrize("source", SOURCES_TESTED.values(), ids=SOURCES_TESTED)
@pytest.mark.parametrize("name", ExecutionSettings.model_fields)
def test_every_field_from_every_source(place: Place, name: str, source: Source) -> None:
    request = source.put(place, name, SAMPLES[name])
    companions = COMPANIONS.get(name, {})
    request["factory_defaults"] = {**companions, **request.get("factory_defaults", {})}

    settings = place.settings(**request)

    expected = tuple(SAMPLES[name]) if isinstance(SAMPLES[name], list) else SAMPLES[name]
    assert getattr(settings, name) == expected
    assert type(getattr(settings, name)) is type(expected)
    origin = settings.origins[name]
    assert (origin.kind, origin.place) == (source.kind, source.place(place, name))
    assert origin.file == source.file(place)
    assert origin.line == (3 if origin.file else None)
    others = {other for other, found in settings.origins.items() if found.kind is not Kind.DEFAULT}
    assert others == {name, *companions}
    assert [shadowed.kind for shadowed in origin.shadowed] == [Kind.DEFAULT]


@pytest.mark.parametrize("name", ExecutionSettings.model_fields)
def test_every_field_from_a_context(place: Place, name: str) -> None:
    with override_settings(**{name: SAMPLES[name]}, **COMPANIONS.get(name, {})):
        settings = place.settings()
    assert format_value(getattr(settings, name)) == format_value(SAMPLES[name])
    assert settings.origins[name].kind is Kind.CONTEXT
    assert getattr(place.settings(), name) == field_specs()[name].default


# --- the ladder -----------------------------------------------------------------------------------------

LADDER = [
    ("factory", Kind.FACTORY),
    ("shipped profile", Kind.PROFILE),
    ("user file", Kind.USER_FILE),
    ("pyproject", Kind.PYPROJECT),
    ("project file", Kind.PROJECT_FILE),
    ("named file", Kind.SETTINGS_FILE),
    ("dotenv", Kind.DOTENV),
    ("environment", Kind.ENVIRONMENT),
    ("context", Kind.CONTEXT),
    ("flag", Kind.FLAG),
    ("override", Kind.OVERRIDE),
    ("argument", Kind.ARGUMENT),
]


def climb(place: Place, rungs: int) -> ExecutionSettings:
    """Resolve with the lowest `rungs` rungs of the ladder in place, `batch_size` growing with each."""
    request: dict[str, Any] = {}
    steps: list[Callable[[int], object]] = [
        lambda n: request.update(factory_defaults={"batch_size": n}),
        lambda n: (
            request.update(profile="step"),
            place.write_user_file(f"[profiles.step]\nbatch_size = {n}\n"),
        ),
        lambda n: place.write_user_file(f"batch_size = {n}\n[profiles.step]\nbatch_size = 2\n"),
        lambda n: place.write("pyproject.toml", f"[tool.ptycho_exec]\nbatch_size = {n}\n"),
        lambda n: place.write("ptycho_exec.toml", f"batch_size = {n}\n"),
        lambda n: request.update(settings_file=place.write("named.toml", f"batch_size = {n}\n")),
        lambda n: place.write(".env", f"PTYCHO_EXEC_BATCH_SIZE={n}\n"),
        lambda n: place.environ.update(PTYCHO_EXEC_BATCH_SIZE=str(n)),
        lambda n: None,
        lambda n: request.update(flags={"batch_size": str(n)}),
        lambda n: request.update(overrides={"batch_size": n}),
        lambda n: request.update(arguments={"batch_size": n}),
    ]
    for number, step in enumerate(steps[:rungs], 1):
        step(number)
    if rungs >= 9:
        with override_settings(batch_size=9):
            return place.settings(**request)
    return place.settings(**request)


@pytest.mark.parametrize("rungs", [*range(13), *reversed(range(12))])
def test_the_ladder_up_and_down(place: Place, rungs: int) -> None:
    settings = climb(place, rungs)
    origin = settings.origins["batch_size"]
    assert settings.batch_size == (rungs or 16)
    assert origin.kind is (LADDER[rungs - 1][1] if rungs else Kind.DEFAULT)
    below = [kind for _, kind in reversed(LADDER[: max(rungs - 1, 0)])]
    assert [shadowed.kind for shadowed in origin.shadowed] == ([*below, Kind.DEFAULT] if rungs else [])
    assert [shadowed.value for shadowed in origin.shadowed] == (
        [*range(rungs - 1, 0, -1), 16] if rungs else []
    )


def test_the_ladder_is_the_order_of_the_sources() -> None:
    assert [kind for kind, _ in SOURCES] == [kind for _, kind in reversed(LADDER)]
    assert [kind for kind, _ in SOURCES] == [kind for kind in Kind if kind is not Kind.DEFAULT]


# --- reading --------------------------------------------------------------------------------------------


def test_no_source_is_read_twice(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = [
        place.write(".env", "PTYCHO_EXEC_PROFILE=mine\n"),
        place.write("ptycho_exec.toml", "[profiles.mine]\nseed = 1\n"),
        place.write("a.toml", "seed = 2\n"),
        place.write_user_file("seed = 3\n"),
    ]
    reads: list[str] = []
    real = Path.read_text

    def counting(self: Path, *args: Any, **options: Any) -> str:
        reads.append(str(self))
        return real(self, *args, **options)

    monkeypatch.setattr(Path, "read_text", counting)
    place.settings(settings_file="a.toml")
    assert sorted(reads) == sorted(str(path) for path in paths)


def test_every_file_that_was_looked_for_is_listed(place: Place) -> None:
    looked = place.resolve().searched
    assert [row.kind for row in looked] == [
        Kind.DOTENV,
        Kind.SETTINGS_FILE,
        Kind.PROJECT_FILE,
        Kind.PYPROJECT,
        Kind.USER_FILE,
    ]
    assert not any(row.found for row in looked)
    assert "and in every folder above" in looked[2].path
    place.write("ptycho_exec.toml", "")
    assert [row.path for row in place.resolve().searched if row.found] == [
        str(place.cwd / "ptycho_exec.toml")
    ]


def test_the_nearest_project_file_upward_is_read(place: Place) -> None:
    (place.home / "ptycho_exec.toml").write_text("seed = 1\n")
    assert place.settings().seed == 1
    place.write("ptycho_exec.toml", "seed = 2\n")
    assert place.settings().seed == 2


def test_a_pyproject_without_our_table_is_passed_over(place: Place) -> None:
    (place.home / "pyproject.toml").write_text("[tool.ptycho_exec]\nseed = 1\n")
    place.write("pyproject.toml", '[project]\ndependencies = ["ptycho_exec"]\n')
    assert place.settings().seed == 1


def test_xdg_config_home_counts_only_when_it_is_absolute(place: Place, tmp_path: Path) -> None:
    place.write_user_file("seed = 1\n")
    elsewhere = place.write(str(tmp_path / "xdg" / "ptycho_exec" / "settings.toml"), "seed = 2\n")
    assert place.settings().seed == 1
    place.environ["XDG_CONFIG_HOME"] = str(elsewhere.parents[1])
    assert place.settings().seed == 2
    place.environ["XDG_CONFIG_HOME"] = "xdg"
    assert place.settings().seed == 1


def test_without_a_home_there_is_no_user_file(place: Place) -> None:
    looked = resolve(Request(environ={}, cwd=place.cwd)).searched
    assert (looked[-1].kind, looked[-1].found) == (Kind.USER_FILE, False)


def test_a_working_directory_that_is_gone_is_a_notice(
    clean_process: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = clean_process.cwd / "gone"
    folder.mkdir()
    monkeypatch.chdir(folder)
    folder.rmdir()
    resolution = resolve(Request())
    assert resolution.errors == ()
    what = "the working directory no longer exists, so no file in it was read"
    assert (what, "not-read") in {(notice.what, notice.code) for notice in resolution.notices}


def test_an_empty_variable_counts_as_unset(place: Place) -> None:
    place.environ["PTYCHO_EXEC_BATCH_SIZE"] = "  "
    place.write(".env", "PTYCHO_EXEC_BATCH_SIZE=5\nPTYCHO_EXEC_SEED=\n")
    resolution = place.resolve()
    assert resolution.values == {"batch_size": 5}
    assert [(notice.what, notice.code, notice.field) for notice in resolution.notices] == [
        ("PTYCHO_EXEC_BATCH_SIZE is empty and counts as unset", "empty-variable", "batch_size"),
        (f"PTYCHO_EXEC_SEED is empty ({place.cwd}/.env:2) and counts as unset", "empty-variable", "seed"),
    ]


@pytest.mark.parametrize("word", ["none", "None", "NULL", "nUlL", " none "])
def test_none_as_a_word_in_any_case(place: Place, word: str) -> None:
    place.environ["PTYCHO_EXEC_EARLY_STOP_PATIENCE"] = word
    place.write("ptycho_exec.toml", f'num_threads = "{word.strip()}"\n')
    settings = place.settings(factory_defaults={"num_threads": 3})
    assert settings.early_stop_patience is None
    assert settings.num_threads is None


@pytest.mark.parametrize("text", ["1", "true", "TRUE", "Yes", "on", "t", "y", " true "])
def test_words_for_true(place: Place, text: str) -> None:
    place.environ["PTYCHO_EXEC_COMPILE"] = text
    assert place.settings().compile is True


@pytest.mark.parametrize("text", ["0", "false", "No", "OFF", "f", "n"])
def test_words_for_false(place: Place, text: str) -> None:
    place.environ["PTYCHO_EXEC_DETERMINISTIC"] = text
    assert place.settings().deterministic is False


@pytest.mark.parametrize(
    ("text", "value"), [("0,1", (0, 1)), ("[0, 1]", (0, 1)), ("[3]", (3,)), ("2", 2), ("auto", "auto")]
)
def test_devices_as_text(place: Place, text: str, value: object) -> None:
    place.environ["PTYCHO_EXEC_DEVICES"] = text
    assert place.settings().devices == value


def test_dotenv_takes_values_of_the_environment_and_of_lines_above(place: Place) -> None:
    place.environ["NODES"] = "4"
    place.write(".env", "SIZE=3\nPTYCHO_EXEC_BATCH_SIZE=${SIZE}\nPTYCHO_EXEC_NUM_NODES=${NODES}\n")
    settings = place.settings()
    assert (settings.batch_size, settings.num_nodes) == (3, 4)


# --- controls: settings file and profile ----------------------------------------------------------------


@pytest.mark.parametrize("how", ["argument", "environment", "dotenv"])
def test_a_named_file_that_is_missing_is_an_error(place: Place, how: str) -> None:
    request: dict[str, Any] = {"settings_file": "absent.toml"} if how == "argument" else {}
    if how == "environment":
        place.environ["PTYCHO_EXEC_SETTINGS_FILE"] = "absent.toml"
    if how == "dotenv":
        place.write(".env", "\nPTYCHO_EXEC_SETTINGS_FILE=absent.toml\n")
    with pytest.raises(SettingsError, match=r"settings file not found: .*absent\.toml") as caught:
        place.settings(**request)
    finding = caught.value.findings[0]
    assert how in finding.where
    assert finding.line == (2 if how == "dotenv" else 0)


def test_a_directory_in_the_place_of_a_file(place: Place) -> None:
    for name in (".env", "ptycho_exec.toml", "named.toml"):
        (place.cwd / name).mkdir()
    assert place.settings() == ExecutionSettings.from_values({})
    with pytest.raises(SettingsError, match="settings file is a directory"):
        place.settings(settings_file="named.toml")


@pytest.mark.parametrize("name", ["~nobody-has-this-name/a.toml", "a\0b.toml", "/dev/null", ""])
def test_odd_paths_are_errors_that_say_so(place: Place, name: str) -> None:
    with pytest.raises(SettingsError, match="settings file"):
        place.settings(settings_file=name)


def test_a_settings_file_may_be_a_link(place: Place) -> None:
    target = place.write("deep/real.toml", "seed = 8\n")
    (place.cwd / "link.toml").symlink_to(target)
    assert place.settings(settings_file="link.toml").seed == 8


def test_a_profile_is_asked_for_by_argument_variable_dotenv_and_file(place: Place) -> None:
    names = ["file", "dot", "variable", "argument"]
    place.write(
        "ptycho_exec.toml",
        'profile = "file"\n' + "".join(f"[profiles.{n}]\nseed = {i}\n" for i, n in enumerate(names)),
    )
    found = [(resolution := place.resolve()).values["seed"]]
    assert resolution.profile_asked_by == f"project-file ({place.cwd}/ptycho_exec.toml:1)"
    place.write(".env", "PTYCHO_EXEC_PROFILE=dot\n")
    found.append(place.resolve().values["seed"])
    place.environ["PTYCHO_EXEC_PROFILE"] = "variable"
    found.append(place.resolve().values["seed"])
    found.append(place.resolve(profile="argument").values["seed"])
    assert found == [0, 1, 2, 3]


def test_profiles_extend_each_other(place: Place) -> None:
    place.write(
        "ptycho_exec.toml",
        '[profiles.a]\nextends = "b"\nseed = 1\n[profiles.b]\nextends = "ci"\nbatch_size = 2\nseed = 3\n',
    )
    settings = place.settings(profile="a")
    assert (settings.seed, settings.batch_size, settings.accelerator) == (1, 2, "cpu")
    places = {name: settings.origins[name].place for name in ("seed", "batch_size", "accelerator")}
    assert places == {"seed": "profile:a", "batch_size": "profile:b", "accelerator": "profile:ci"}


def test_a_profile_may_extend_the_shipped_one_of_its_name(place: Place) -> None:
    place.write("ptycho_exec.toml", '[profiles.ci]\nextends = "ci"\nseed = 1\n')
    settings = place.settings(profile="ci")
    assert (settings.seed, settings.accelerator) == (1, "cpu")


def test_a_profile_of_a_higher_file_extends_its_namesake_below(place: Place) -> None:
    place.write("ptycho_exec.toml", '[profiles.x]\nextends = "x"\nseed = 1\n')
    place.write_user_file("[profiles.x]\nseed = 2\nbatch_size = 3\n")
    settings = place.settings(profile="x")
    assert (settings.seed, settings.batch_size) == (1, 3)


@pytest.mark.parametrize(
    "text",
    [
        '[profiles.a]\nextends = "a"\n',
        '[profiles.a]\nextends = "b"\n[profiles.b]\nextends = "a"\n',
        '[profiles.a]\nextends = "b"\n[profiles.b]\nextends = "c"\n[profiles.c]\nextends = "b"\n',
    ],
)
def test_a_cycle_of_profiles_is_an_error(place: Place, text: str) -> None:
    place.write("ptycho_exec.toml", text)
    with pytest.raises(SettingsError, match="extends itself") as caught:
        place.settings(profile="a")
    assert caught.value.findings[0].line == len(text.splitlines())


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ('profile = "lptop"', 1, ["unknown profile 'lptop'", "expected: laptop"]),
        ("profile = 3", 1, ["profile must be the name"]),
        ('profile = " "', 1, ["profile must be the name"]),
        ("[profile.ci]\nseed = 1", 1, ["table [profile] is not read", "[profiles.NAME]"]),
        ("profiles = 1", 1, ["profiles is not a table"]),
        ("[[profiles]]\nseed = 1", 1, ["profiles is not a table"]),
        ("[profiles]\nseed = 1", 2, ["profile seed is not a table", "move seed out of [profiles]"]),
        ("[profiles.a]\nextends = 3", 2, ["extends must be a string"]),
        ("[profiles.a]\nextend = 'ci'", 2, ["unknown setting 'extend'", "expected: extends"]),
        ("[profiles.a]\nbach_size = 3", 2, ["unknown setting 'bach_size'", "expected: batch_size"]),
        ("[profiles.a]\nbatch_size = 0", 2, ["batch_size = 0 is not allowed", "profile:a"]),
        ("[profiles.a.more]\nseed = 3", 2, ["seed is ignored in [profiles.a.more]"]),
    ],
)
def test_profiles_that_are_wrong_are_found_although_nobody_asks_for_them(
    place: Place, text: str, line: int, words: list[str]
) -> None:
    path = place.write("ptycho_exec.toml", f"{text}\n")
    with pytest.raises(SettingsError) as caught:
        place.settings()
    report = str(caught.value)
    assert not [word for word in words if word not in report]
    assert {(f.file, f.line) for f in caught.value.findings} == {(str(path), line)}


# --- findings -------------------------------------------------------------------------------------------


def test_all_findings_come_in_one_report(place: Place) -> None:
    place.environ |= {"PTYCHO_EXEC_BACH_SIZE": "1", "PTYCHO_EXEC_SEED": "x"}
    place.write(".env", "\nPTYCHO_EXEC_DEVICE=1\nseed=3\n")
    place.write("ptycho_exec.toml", "learning_rat = 1\n[training]\nnum_workers = 2\nfoo = 3\n")
    place.write("named.yaml", "seeed: 1\n")
    with pytest.raises(SettingsError) as caught:
        place.settings(settings_file="named.yaml", arguments={"acelerator": "cpu"}, profile="c")
    told = [(f.what.partition(":")[0], Path(f.file).name, f.line) for f in caught.value.findings]
    assert sorted(told) == sorted(
        [
            ("unknown setting 'acelerator'", "", 0),
            ("unknown setting 'PTYCHO_EXEC_BACH_SIZE'", "", 0),
            ("seed = 'x' is not allowed", "", 0),
            ("unknown setting 'PTYCHO_EXEC_DEVICE'", ".env", 2),
            ("seed in .env is ignored", ".env", 3),
            ("unknown setting 'learning_rat'", "ptycho_exec.toml", 1),
            ("num_workers is ignored in [training]", "ptycho_exec.toml", 3),
            ("unknown setting 'foo'", "ptycho_exec.toml", 4),
            ("unknown setting 'seeed'", "named.yaml", 1),
            ("unknown profile 'c'", "", 0),
        ]
    )
    assert all(f.what and f.where and f.expected and f.fix for f in caught.value.findings)


def test_a_malformed_value_is_told_although_it_is_shadowed(place: Place) -> None:
    place.write("ptycho_exec.toml", "batch_size = 0\n")
    place.write_user_file("\nbatch_size = -1\n")
    place.write("pyproject.toml", "[tool.ptycho_exec]\nbatch_size = 4\n")
    with pytest.raises(SettingsError) as caught:
        place.settings(arguments={"batch_size": 8}, factory_defaults={"batch_size": 2.5})
    told = {(f.what, f.line) for f in caught.value.findings}
    assert told == {
        ("batch_size = 0 is not allowed", 1),
        ("batch_size = -1 is not allowed", 2),
        ("batch_size = 2.5 is not allowed", 0),
    }


@pytest.mark.parametrize(
    "name",
    [
        "PTYCHO_BATCH_SIZE",
        "PTYCH_EXEC_BATCH_SIZE",
        "PTYCHOEXEC_BATCH_SIZE",
        "PTYCHO_EXECBATCH_SIZE",
        "PTYCHO_EXECB_ATCH_SIZE",
        "PTYCHO_EXCE_BATCH_SIZE",
        "TPYCHO_EXEC_BATCH_SIZE",
        "YTCHO_EXEC_BATCH_SIZE",
        "PTYCHO_EXE_BATCH_SIZE",
        "PTYCHO-EXEC-BATCH-SIZE",
        "ptycho_exec_batch_size",
        "Ptycho_Exec_Batch_Size",
        "PTYCHO_EXEC__BATCH_SIZE",
        "PTYCHO_EXEC_BATCHSIZE",
        "PTYCHO_EXEC_BATCH_SIZE ",
    ],
)
@pytest.mark.parametrize("dotenv", [False, True])
def test_a_variable_that_is_nearly_ours_is_told(place: Place, name: str, dotenv: bool) -> None:
    if dotenv:
        place.write(".env", f"'{name}'=8\n")
    else:
        place.environ[name] = "8"
    findings = place.resolve().findings
    assert [finding.expected for finding in findings] == ["PTYCHO_EXEC_BATCH_SIZE"]


def test_variables_of_other_programs_are_theirs(place: Place) -> None:
    foreign = {
        "PATH": "/bin",
        "SEEDS": "1",
        "PTYCHO_DATA": "/data",
        "PTYPY_EXEC": "x",
        "EXEC_BATCH_SIZE": "1",
        "PSYCHO_SPECTRUM": "1",
        "BATCH_SIZE": "7",
        "OTHER_PTYCHO_HOME": "x",
    }
    place.environ |= foreign
    place.write(".env", "DATABASE_URL=postgres://u:p@h/db\nSECRET_KEY='a b'\nexport FOO=1\n")
    resolution = place.resolve()
    assert (resolution.values, resolution.findings) == ({}, ())


@pytest.mark.parametrize(
    "name",
    [
        "PTYCHO_EXEC_SERVICE_HOST",
        "PTYCHO_EXEC_SERVICE_PORT",
        "PTYCHO_EXEC_SERVICE_PORT_HTTP",
        "PTYCHO_EXEC_PORT",
        "PTYCHO_EXEC_PORT_8000_TCP",
        "PTYCHO_EXEC_PORT_8000_TCP_ADDR",
        "PTYCHO_EXEC_PORT_8000_TCP_PORT",
        "PTYCHO_EXEC_PORT_8000_TCP_PROTO",
        "PTYCHO_EXEC_API_SERVICE_HOST",
        "PTYCHO_EXEC_API_PORT_53_UDP",
    ],
)
def test_service_links_of_container_platforms_are_allowed(place: Place, name: str) -> None:
    place.environ[name] = "tcp://10.0.0.1:8000"
    assert place.resolve().findings == ()


def test_lightnings_own_variables_are_said_to_have_no_effect(place: Place) -> None:
    place.environ |= {"PL_TRAINER_MAX_EPOCHS": "3", "PL_GLOBAL_SEED": "1", "LT_DEVICES": "2"}
    place.write(".env", "PL_TRAINER_DEVICES=3\n")
    notices = place.resolve().notices
    assert len(notices) == 2
    assert notices[0].what.endswith("LT_DEVICES, PL_GLOBAL_SEED, PL_TRAINER_MAX_EPOCHS")
    assert notices[1].what.endswith("PL_TRAINER_DEVICES")


@pytest.mark.parametrize("table", ["tool.ptycho-exec", "tool.ptycho_exce", "tool.PtychoExec", "ptycho_exec"])
def test_a_table_of_pyproject_that_is_nearly_ours_is_told(place: Place, table: str) -> None:
    place.write("pyproject.toml", f"[project]\nname = 'x'\n[{table}]\nseed = 1\n")
    findings = place.resolve().findings
    assert [(finding.line, finding.expected) for finding in findings] == [(3, "[tool.ptycho_exec]")]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[tool.ptycho_exec]\nseed = 1\n", [("seed", 2)]),
        ("[ptycho_exec]\nseed = 1\nfoo = 2\n", [("seed", 2), ("foo", 3)]),
        ("[a.b.c]\nseed = 1\n[a.d]\nx = 1\n", [("seed", 2), ("d", 3)]),
        ("[trainer]\nfoo = 1\n", [("trainer", 1)]),
    ],
)
def test_settings_in_the_wrong_table_are_found_at_any_depth(
    place: Place, text: str, told: list[tuple[str, int]]
) -> None:
    place.write("ptycho_exec.toml", text)
    findings = place.resolve().findings
    assert [finding.line for finding in findings] == [line for _, line in told]
    assert all(name in finding.what for (name, _), finding in zip(told, findings, strict=True))


@pytest.mark.parametrize(
    "name", ["ptycho-exec.toml", ".ptycho_exec.toml", "ptycho_exec.yaml", "ptychoexec.json"]
)
def test_a_settings_file_with_nearly_the_right_name_is_noted(place: Place, name: str) -> None:
    path = place.write(name, "{}")
    (notice,) = place.resolve().notices
    assert (
        notice.what
        == f"{path} is not read: the settings file here is ptycho_exec.toml; --settings names another"
    )
    if not name.endswith(".toml"):
        assert place.resolve(settings_file=name).notices == ()


def test_a_user_file_with_nearly_the_right_name_is_noted(place: Place) -> None:
    place.write("../.config/ptycho_exec/settings.yaml", "seed: 1\n")
    assert len(place.resolve().notices) == 1


@pytest.mark.parametrize("values", [3, [1], "batch_size=1", [("batch_size", 1)]])
def test_settings_that_are_no_mapping(values: Any) -> None:
    with pytest.raises(SettingsError, match="must be a mapping"):
        ExecutionSettings.from_values(values)


def test_names_that_are_no_text() -> None:
    with pytest.raises(SettingsError, match="unknown setting '1'"):
        ExecutionSettings.from_values({1: 2})  # type: ignore[dict-item]


def test_misspelt_words_of_the_call_itself() -> None:
    with pytest.raises(SettingsError, match="expected: profile"):
        ExecutionSettings.from_resolution(resolve(Request(arguments={"profil": "ci"}, environ={})))


# --- contexts, overrides, factory -----------------------------------------------------------------------


def test_contexts_nest_and_the_inner_one_wins(place: Place) -> None:
    with override_settings(seed=1, batch_size=2):
        with override_settings(seed=3):
            settings = place.settings()
        outer = place.settings()
    assert (settings.seed, settings.batch_size, outer.seed, place.settings().seed) == (3, 2, 1, 42)
    assert [(o.kind, o.value) for o in settings.origins["seed"].shadowed] == [
        (Kind.CONTEXT, 1),
        (Kind.DEFAULT, 42),
    ]


def test_a_context_ends_with_its_block_also_on_an_error(place: Place) -> None:
    with pytest.raises(ZeroDivisionError), override_settings(seed=1):
        1 / 0  # noqa: B018
    assert place.settings().seed == 42


def test_a_context_refuses_misspelt_names_at_once() -> None:
    with pytest.raises(SettingsError, match="expected: seed"), override_settings(seeed=1):
        pass


def test_a_context_belongs_to_its_task(place: Place) -> None:
    from concurrent.futures import ThreadPoolExecutor

    with override_settings(seed=1), ThreadPoolExecutor(1) as pool:
        assert pool.submit(place.settings).result().seed == 42


def test_overrides_go_onto_everything(place: Place) -> None:
    settings = place.settings(arguments={"seed": 1})
    changed = ExecutionSettings.from_resolution(resolve_onto(settings, {"seed": 2}, place="a test"))
    assert changed.seed == 2
    kinds = [o.kind for o in changed.origins["seed"].shadowed]
    assert (changed.origins["seed"].kind, kinds) == (Kind.OVERRIDE, [Kind.ARGUMENT, Kind.DEFAULT])


def test_factory_defaults_go_under_everything_that_was_set() -> None:
    settings = ExecutionSettings.from_values({"seed": 1})
    defaults = {"seed": 2, "batch_size": Factory(64, "inference")}
    changed = ExecutionSettings.from_resolution(resolve_under(settings, defaults))
    assert (changed.seed, changed.batch_size) == (1, 64)
    assert changed.origins["batch_size"].describe() == "factory, inference"


def test_values_alone_read_nothing_else(clean_process: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PTYCHO_EXEC_SEED", "1")
    monkeypatch.setenv("PTYCHO_EXEC_NONSENSE", "1")
    clean_process.write(".env", "PTYCHO_EXEC_SEED=2\nPTYCHO_EXEC_NONSENSE=1\n")
    with override_settings(seed=3):
        resolution = resolve_values({"batch_size": 1}, place="a test")
    assert (dict(resolution.values), resolution.findings) == ({"batch_size": 1}, ())
    assert resolution.searched == ()
