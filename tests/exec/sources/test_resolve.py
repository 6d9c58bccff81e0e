"""The precedence: every field from every source, the ladder up and down, and nothing misspelt passes."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from pydantic_settings import PydanticBaseSettingsSource, SettingsConfigDict, TomlConfigSettingsSource

from ptycho_exec.cli.reference import toml_value
from ptycho_exec.errors import SettingsError
from ptycho_exec.fields.base import ReadOnly
from ptycho_exec.fields.spec import field_specs, format_value
from ptycho_exec.settings import ExecutionSettings, override_settings
from ptycho_exec.sources.origins import Kind
from ptycho_exec.sources.resolve import (
    READERS,
    Factory,
    Request,
    profile_conflicts,
    resolve,
    resolve_onto,
    resolve_under,
    resolve_values,
)

if TYPE_CHECKING:
    from conftest import Place
from tests.exec.samples import COMPANIONS, SAMPLES
from tests.exec.sources.variables import variable


# One value per field that is not its default; the set equality below catches a field that is missing here.
@dataclass
class Source:
    """How a test puts one value into a source, and what its origin then says."""

    kind: Kind
    put: Callable[[Place, str, Any], dict[str, Any]]
    place: Callable[[Place, str], str]
    file: Callable[[Place], str | None] = lambda _: None


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


def _secret(place: Place, name: str, value: Any) -> dict[str, Any]:
    place.write(f"secrets/{variable(name).lower()}", f"{format_value(value)}\n")
    return {"secrets": ("secrets",)}


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
    "secret file": Source(
        Kind.SECRET,
        _secret,
        lambda place, n: str(place.cwd / "secrets" / variable(n).lower()),
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
    assert not [name for name, spec in field_specs().items() if spec.default == SAMPLES[name]]


def test_every_source_is_tested() -> None:
    tested = {source.kind for source in SOURCES_TESTED.values()}
    assert tested | {Kind.CONTEXT} == set(READERS)


@pytest.mark.parametrize("source", SOURCES_TESTED.values(), ids=SOURCES_TESTED)
@pytest.mark.parametrize("name", ExecutionSettings.model_fields)
def test_every_field_from_every_source(place: Place, name: str, source: Source) -> None:
    request = source.put(place, name, SAMPLES[name])
    companions = COMPANIONS.get(name, {})
    request["factory_defaults"] = {**companions, **request.get("factory_defaults", {})}

    settings = place.settings(**request)

    kept = {list: tuple, dict: ReadOnly}
    expected = kept.get(type(SAMPLES[name]), lambda value: value)(SAMPLES[name])
    assert getattr(settings, name) == expected
    assert type(getattr(settings, name)) is type(expected)
    origin = settings.origins[name]
    assert (origin.kind, origin.place) == (source.kind, source.place(place, name))
    if source.kind in (Kind.ARGUMENT, Kind.OVERRIDE):  # the place of the call, which is in this fixture
        assert str(origin.file).endswith("conftest.py")
    else:
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


LADDER = [
    ("factory", Kind.FACTORY),
    ("shipped profile", Kind.PROFILE),
    ("secret file", Kind.SECRET),
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
        lambda n: (
            request.update(secrets=("secrets",)),
            place.write("secrets/ptycho_exec_batch_size", str(n)),
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
    if rungs >= 10:
        with override_settings(batch_size=10):
            return place.settings(**request)
    return place.settings(**request)


@pytest.mark.parametrize("rungs", [*range(14), *reversed(range(13))])
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
    assert list(READERS) == [kind for _, kind in reversed(LADDER)]
    assert list(READERS) == [kind for kind in Kind if kind not in (Kind.DEFAULT, Kind.OTHER, Kind.RECORDED)]


def test_no_source_is_read_twice(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = [
        place.write(".env", "PTYCHO_EXEC_PROFILE=mine\n"),
        place.write("ptycho_exec.toml", "[profiles.mine]\nseed = 1\n"),
        place.write("a.toml", "seed = 2\n"),
        place.write_user_file("seed = 3\n"),
    ]
    reads: list[str] = []
    real = Path.read_bytes

    def counting(self: Path, *args: Any, **options: Any) -> bytes:
        reads.append(str(self))
        return real(self, *args, **options)

    monkeypatch.setattr(Path, "read_bytes", counting)
    place.settings(settings_file="a.toml")
    assert sorted(reads) == sorted(str(path) for path in paths)


@pytest.mark.parametrize("values", [3, [1], "batch_size=1", [("batch_size", 1)]])
def test_settings_that_are_no_mapping(values: Any) -> None:
    with pytest.raises(SettingsError, match="must be a mapping"):
        ExecutionSettings.from_values(values)


def test_names_that_are_no_text() -> None:
    with pytest.raises(SettingsError, match="unknown setting '1'"):
        ExecutionSettings.from_values({1: 2})  # type: ignore[dict-item]


def test_misspelt_words_of_the_call_itself() -> None:
    with pytest.raises(SettingsError, match="expected: profile"):
        ExecutionSettings.from_resolution(
            resolve(Request(ExecutionSettings, arguments={"profil": "ci"}, environ={}))
        )


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
        resolution = resolve_values(ExecutionSettings, {"batch_size": 1}, place="a test")
    assert (dict(resolution.values), resolution.findings) == ({"batch_size": 1}, ())
    assert resolution.searched == ()


def test_contradictions_of_profiles_that_nobody_asked_for(place: Place) -> None:
    environ = {"HOME": str(place.home), "PTYCHO_EXEC_BENCHMARK": "true"}
    place.write(
        "ptycho_exec.toml",
        "[profiles.x]\nbenchmark = true\n[profiles.y]\nextends='x'\ndeterministic = false\n",
    )
    findings = list(profile_conflicts(Request(ExecutionSettings, environ=environ, cwd=place.cwd)))
    assert [(finding.what.partition(":")[0], finding.code) for finding in findings] == [
        ("profile x", "conflict")
    ]
    place.write("ptycho_exec.toml", "deterministic = false\n[profiles.x]\nbenchmark = true\n")
    assert list(profile_conflicts(Request(ExecutionSettings, environ=environ, cwd=place.cwd))) == []


def test_very_many_unknown_names_are_counted(place: Place) -> None:
    many = {f"name_{i}": 1 for i in range(20_000)}
    place.write("ptycho_exec.toml", "".join(f"{name} = 1\n" for name in many))
    place.write("a.toml", "[x]\nseed = 1\n" + "".join(f"{name} = 1\n" for name in many))
    place.write(".env", "".join(f"PTYCHO_EXEC_{name}=1\n" for name in many))
    place.environ = {f"PTYCHO_EXEC_{name}": "1" for name in many}
    findings = place.resolve(settings_file="a.toml", arguments=many).errors
    assert len(findings) == 5 * 101 + 1
    assert [f.what for f in findings].count("19900 more names there are unknown") == 5


# --- tables -------------------------------------------------------------------------------------------------


def test_a_table_is_merged_name_by_name_and_each_keeps_its_place(place: Place) -> None:
    pyproject = place.write("pyproject.toml", "[tool.ptycho_exec.trainer]\nmin_steps = 1\nmin_epochs = 1\n")
    project = place.write(
        "ptycho_exec.toml",
        "[trainer]\nmin_epochs = 2\nbarebones = false\n"
        "[profiles.a.trainer]\nsync_batchnorm = true\nmin_steps = 9\n",
    )
    place.write(".env", f"{variable('trainer')}__INFERENCE_MODE=false\n")
    settings = place.settings(profile="a", flags={"trainer": ("barebones=true", "min_epochs=4")})
    assert settings.trainer == {
        "min_epochs": 4,
        "barebones": True,
        "inference_mode": False,
        "min_steps": 1,
        "sync_batchnorm": True,
    }
    assert {name: settings.origin_of(f"trainer.{name}") for name in settings.trainer} == {
        "min_epochs": "flag --trainer",
        "barebones": "flag --trainer",
        "inference_mode": f"dotenv PTYCHO_EXEC_TRAINER__INFERENCE_MODE ({place.cwd}/.env:1)",
        "min_steps": f"pyproject ({pyproject}:2)",
        "sync_batchnorm": f"profile:a ({project}:5)",
    }
    kept = settings.with_overrides(trainer={"min_epochs": None})
    assert kept.trainer == {**settings.trainer, "min_epochs": None}


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("run.toml", "[trainer]\nmin_epochs = 'none'\nlimit_test_batches = 0.5"),
        ("run.yaml", "trainer:\n  min_epochs: null\n  limit_test_batches: 0.5"),
        ("run.json", '{"trainer": {\n"min_epochs": null,\n"limit_test_batches": 0.5}}'),
    ],
)
def test_a_table_in_each_language(place: Place, name: str, text: str) -> None:
    path = place.write(name, text)
    settings = place.settings(settings_file=name)
    assert settings.trainer == {"min_epochs": None, "limit_test_batches": 0.5}
    assert settings.origin_of("trainer.limit_test_batches") == f"settings-file ({path}:3)"


def test_the_variable_of_one_name_wins_over_that_of_the_table(place: Place) -> None:
    whole, one = variable("trainer"), variable("trainer") + "__MIN_EPOCHS"
    for names in ((whole, one), (one, whole)):
        texts = {whole: "min_epochs=1, barebones=yes", one: "2"}
        place.environ = {name: texts[name] for name in names}
        settings = place.settings()
        assert settings.trainer == {"min_epochs": 2, "barebones": True}
        assert settings.origin_of("trainer.min_epochs") == f"environment {one}"


def test_a_profile_that_acts_through_a_table_alone_is_not_called_without_effect(place: Place) -> None:
    place.write("ptycho_exec.toml", "[trainer]\nmin_steps = 1\n[profiles.a.trainer]\nmin_epochs = 2\n")
    assert place.settings(profile="a").notices == ()


def test_texts_in_a_table_are_typed_by_their_names() -> None:
    settings = ExecutionSettings.model_validate_strings({"trainer": {"min_epochs": "3", "barebones": "yes"}})
    assert settings.trainer == {"min_epochs": 3, "barebones": True}
    with pytest.raises(SettingsError, match=r"trainer.min_epochs = 'x' is not allowed"):
        ExecutionSettings.model_validate_strings({"trainer": {"min_epochs": "x"}})


def test_a_subclass_reads_the_table_from_its_own_variables(
    clean_process: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Bench(ExecutionSettings):
        model_config = SettingsConfigDict(env_prefix="BENCH_")

    monkeypatch.setenv("BENCH_TRAINER__MIN_EPOCHS", "3")
    assert Bench().trainer == {"min_epochs": 3}
    monkeypatch.setenv("BENCH_TRAINER__MIN_EPOCH", "3")
    with pytest.raises(SettingsError, match="write BENCH_TRAINER__MIN_EPOCHS"):
        Bench()


# --- sources of a subclass ----------------------------------------------------------------------------------


def _with_source(act: Callable[[PydanticBaseSettingsSource], dict[str, Any]]) -> type[ExecutionSettings]:
    """Return a class that reads, after arguments and variables, a source that does this."""

    class Own(PydanticBaseSettingsSource):
        def get_field_value(self, field: Any, field_name: str) -> tuple[Any, str, bool]:
            raise NotImplementedError

        def __call__(self) -> dict[str, Any]:
            return act(self)

    class WithOwn(ExecutionSettings):
        @classmethod
        def settings_customise_sources(
            cls, settings_cls: Any, init_settings: Any, env_settings: Any, **others: Any
        ) -> tuple[PydanticBaseSettingsSource, ...]:
            return init_settings, env_settings, Own(settings_cls), others["dotenv_settings"]

    return WithOwn


def test_a_source_of_a_subclass_knows_what_those_before_it_gave(
    clean_process: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = list[Any]()

    def act(source: PydanticBaseSettingsSource) -> dict[str, Any]:
        seen.extend((dict(source.current_state), dict(source.settings_sources_data)))
        return {"accum_steps": source.current_state["batch_size"] // 2, "batch_size": 1}

    monkeypatch.setenv("PTYCHO_EXEC_BATCH_SIZE", "8")
    monkeypatch.setenv("PTYCHO_EXEC_TRAINER__MIN_EPOCHS", "2")
    clean_process.write(".env", "PTYCHO_EXEC_NUM_WORKERS=1\n")
    settings = _with_source(act)(batch_size=6, trainer={"min_steps": 3})
    assert (settings.batch_size, settings.accum_steps, settings.num_workers) == (6, 3, 1)
    assert seen[0] == {"batch_size": 6, "trainer": {"min_epochs": 2, "min_steps": 3}}
    assert seen[1] == {
        "InitSettingsSource": {"batch_size": 6, "trainer": {"min_steps": 3}},
        "EnvSettingsSource": {"batch_size": 8, "trainer": {"min_epochs": 2}},
    }


def test_a_source_of_a_subclass_that_fails_is_one_finding(clean_process: Place) -> None:
    del clean_process

    def act(source: PydanticBaseSettingsSource) -> dict[str, Any]:
        raise ConnectionError("no answer from https://me:s3cret@vault")

    with pytest.raises(SettingsError) as caught:
        _with_source(act)(bach_size=1)
    failed, unknown = sorted(caught.value.findings, key=lambda finding: finding.code)
    assert failed.what == "the source Own fails: ConnectionError: no answer from https://***@vault"
    assert (failed.code, failed.file, unknown.code) == ("failed", __file__, "unknown-name")
    assert _with_source(lambda _: {})(batch_size=1).batch_size == 1


def test_a_file_of_a_source_of_a_subclass_that_is_broken_is_named(clean_process: Place) -> None:
    path = clean_process.write("site.toml", "seed = \n")

    class WithSite(ExecutionSettings):
        @classmethod
        def settings_customise_sources(
            cls, settings_cls: Any, **others: Any
        ) -> tuple[PydanticBaseSettingsSource, ...]:
            return (TomlConfigSettingsSource(settings_cls, path),)

    with pytest.raises(SettingsError) as caught:
        WithSite()
    (finding,) = caught.value.findings
    start = f"settings_customise_sources of WithSite fails at {path}: TOMLDecodeError: Invalid value"
    assert finding.what.startswith(start)
    assert finding.file == __file__
    path.write_text("seed = 3\n")
    assert WithSite().seed == 3
