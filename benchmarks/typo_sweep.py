"""Every field x every source x one slip of the finger: is it told, is the right name suggested first?

Slips: a letter deleted, two swapped, one doubled, the case changed, a hyphen for an underscore (or the
reverse), at every position where it makes a name that is not right. For comparison the same fields, with
the same names, are given to pydantic-settings, LightningCLI, Hydra and dynaconf, where they are installed
(`pip install ptycho-exec[bench]`), and each slip goes through the sources that these have.

    python benchmarks/typo_sweep.py [--quick]
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import random
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

from pydantic_settings import SettingsConfigDict

from ptycho_exec.cli.flags import Parser, add_controls, add_settings_flags, flags_given
from ptycho_exec.errors import SettingsError
from ptycho_exec.fields.spec import FieldSpec, field_specs
from ptycho_exec.settings import ExecutionSettings, ResolvedSettings
from ptycho_exec.sources.discovery import places_of
from ptycho_exec.sources.profiles import PROFILE_KEYS
from ptycho_exec.sources.resolve import CONTROLS, Request, resolve
from ptycho_exec.sources.suggestions import RETIRED
from ptycho_torch.settings import ScienceSettings


class Lab(ExecutionSettings):
    """A settings class of another program, with its own names and a field of its own."""

    program: ClassVar[str] = "lab"
    model_config = SettingsConfigDict(env_prefix="LAB_")

    beamline: str = "none"
    """Where the scan was taken."""


MODELS: tuple[type[ResolvedSettings], ...] = (ExecutionSettings, ScienceSettings, Lab)
MODEL: ContextVar[type[ResolvedSettings]] = ContextVar("model", default=ExecutionSettings)
"""The settings class whose names are misspelt."""


def specs() -> Mapping[str, FieldSpec]:
    return field_specs(MODEL.get())


NOWHERE = Path(tempfile.mkdtemp(prefix="typo_sweep_"))
ENVIRON = {"HOME": str(NOWHERE), "PATH": "/usr/bin"}


class Slip(NamedTuple):
    """A name with one slip, and the field that was meant."""

    kind: str
    name: str
    meant: str


def slips(name: str, meant: str, known: set[str]) -> Iterator[Slip]:
    """Yield every single slip in `name` that makes a word which is not right by itself."""
    made: dict[str, str] = {}
    for i, letter in enumerate(name):
        made.setdefault(name[:i] + name[i + 1 :], "delete")
        made.setdefault(name[:i] + letter + name[i:], "double")
        if i + 1 < len(name):
            made.setdefault(name[:i] + name[i + 1] + letter + name[i + 2 :], "swap")
        made.setdefault(name[:i] + letter.swapcase() + name[i + 1 :], "case")
        other = {"-": "_", "_": "-"}.get(letter)
        if other:
            made.setdefault(name[:i] + other + name[i + 1 :], "hyphen")
    made.setdefault(name.swapcase(), "case")
    made.setdefault(name.replace("_", "-") if "_" in name else name.replace("-", "_"), "hyphen")
    yield from (Slip(kind, typo, meant) for typo, kind in made.items() if typo and typo not in known)


@dataclass
class Tally:
    """What became of the slips in one source."""

    tried: int = 0
    accepted: list[Slip] = field(default_factory=list)
    wrong: list[tuple[Slip, str]] = field(default_factory=list)

    def add(self, slip: Slip, told: str | None) -> None:
        self.tried += 1
        if told is None:
            self.accepted.append(slip)
        elif told != slip.meant:
            self.wrong.append((slip, told))

    @property
    def suggested(self) -> float:
        """Share of the slips for which the right name came first."""
        return 1 - (len(self.wrong) + len(self.accepted)) / max(self.tried, 1)


Teller = Callable[[str], str | None]
"""Tries one misspelt name; returns None when it was accepted, else the field suggested first, or ''."""


def first_suggestion(findings: Any) -> str | None:
    """Return the field that the first finding expects; None without a finding."""
    if not findings:
        return None
    return bare(findings[0].expected.split(" or ")[0]).split(" ")[0]


def bare(name: str) -> str:
    """Return the field that a flag or a variable names."""
    plain = name.removeprefix("--").replace("-", "_").lower()
    plain = plain.removeprefix(places_of(MODEL.get()).prefix.lower())
    return next((field for field in specs() if field.lower() == plain), plain)


def _resolved(**request: Any) -> str | None:
    return first_suggestion(resolve(Request(MODEL.get(), environ=ENVIRON, cwd=NOWHERE, **request)).findings)


def _with_file(name: str, text: str, **request: Any) -> str | None:
    path = NOWHERE / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, "utf-8")
    try:
        return _resolved(**request)
    finally:
        path.unlink()


@cache
def parser(model: type[ResolvedSettings]) -> Parser:
    made = Parser(prog="sweep")
    add_settings_flags(made, model)
    add_controls(made)
    return made


def _flag(word: str) -> str | None:
    try:
        flags_given(parser(MODEL.get()).parse([f"{word}=1"]), MODEL.get())
    except SettingsError as error:
        return first_suggestion(error.findings)
    return None


def _context(name: str) -> str | None:
    try:
        with MODEL.get().override(**{name: 1}):
            return None
    except SettingsError as error:
        return first_suggestion(error.findings)


def _environment(name: str) -> str | None:
    environ = {**ENVIRON, name: "1"}
    return first_suggestion(resolve(Request(MODEL.get(), environ=environ, cwd=NOWHERE)).findings)


def _quoted(name: str) -> str:
    return json.dumps(name)


def _program() -> str:
    return MODEL.get().program


OURS: dict[str, tuple[str, Teller]] = {
    "keyword": ("field", lambda name: _resolved(arguments={name: 1})),
    "overrides": ("field", lambda name: _resolved(overrides={name: 1})),
    "factory": ("field", lambda name: _resolved(factory_defaults={name: 1})),
    "context": ("field", _context),
    "flag": ("flag", _flag),
    "environment": ("variable", _environment),
    ".env": ("variable", lambda name: _with_file(".env", f"'{name}'=1\n")),
    "TOML": ("field", lambda name: _with_file(f"{_program()}.toml", f"{_quoted(name)} = 1\n")),
    "YAML": ("field", lambda name: _with_file("a.yaml", f"{_quoted(name)}: 1\n", settings_file="a.yaml")),
    "JSON": ("field", lambda name: _with_file("a.json", f"{{{_quoted(name)}: 1}}", settings_file="a.json")),
    "pyproject": (
        "field",
        lambda name: _with_file("pyproject.toml", f"[tool.{_program()}]\n{_quoted(name)} = 1\n"),
    ),
    "user file": (
        "field",
        lambda name: _with_file(f".config/{_program()}/settings.toml", f"{_quoted(name)} = 1\n"),
    ),
    "profile": (
        "field",
        lambda name: _with_file(f"{_program()}.toml", f"[profiles.x]\n{_quoted(name)} = 1\n"),
    ),
}


def spelling(form: str, name: str) -> str:
    """Write a field as the source does."""
    return {"field": name, "variable": specs()[name].variable, "flag": specs()[name].flag}[form]


def sweep(tellers: Mapping[str, tuple[str, Teller]], share: float = 1.0) -> dict[str, Tally]:
    """Try every slip (or a share of them, drawn with a fixed seed) in every source."""
    draw = random.Random(0)
    tallies: dict[str, Tally] = {}
    for source, (form, tell) in tellers.items():
        tally = tallies.setdefault(source, Tally())
        known = {spelling(form, name) for name in specs()} | {*CONTROLS, *PROFILE_KEYS}
        known |= {f"--{control.replace('_', '-')}" for control in CONTROLS}
        for name in specs():
            for slip in slips(spelling(form, name), name, known):
                if bare(slip.name) in RETIRED or draw.random() > share:
                    continue  # a retired name has a remedy of its own
                tally.add(slip, tell(slip.name))
    return tallies


# --- the others -----------------------------------------------------------------------------------------


def _told(act: Callable[[], Any], *errors: type[BaseException]) -> str | None:
    """Return None when the typo is accepted, the suggestion in the message if there is one, else ''.

    A spelling that is understood (some take names in any case) is no typo there: the field that it set
    counts as told.
    """
    out = io.StringIO()
    try:
        with contextlib.redirect_stderr(out), contextlib.redirect_stdout(out):
            values = act()
        return next((name for name in field_specs() if str(_value(values, name)) == str(VALUE)), None)
    except errors as error:
        message = f"{out.getvalue()} {error}"
        words = message.lower().partition("did you mean")[2].replace("'", " ").replace("?", " ").split()
        return words[0].rpartition(".")[2].lstrip("-").replace("-", "_") if words else ""


VALUE = 7
"""What the misspelt name is given; no default."""


def _value(values: Any, name: str) -> Any:
    if isinstance(values, Mapping):
        values = {key.lower(): value for key, value in values.items()}
        return values.get(name)
    return getattr(values, name, None)


def _with_environ(names: Mapping[str, str], act: Callable[[], object]) -> object:
    before = dict(os.environ)
    os.environ.update(names)
    try:
        return act()
    finally:
        os.environ.clear()
        os.environ.update(before)


def pydantic_settings() -> dict[str, tuple[str, Teller]]:
    """Plain pydantic-settings with everything set to its strictest."""
    from pydantic import ValidationError, create_model
    from pydantic_settings import BaseSettings, SettingsConfigDict, TomlConfigSettingsSource
    from pydantic_settings.exceptions import SettingsError as TheirError

    fields: Any = {name: (int | Any, spec.default) for name, spec in field_specs().items()}

    class Base(BaseSettings):
        model_config = SettingsConfigDict(env_prefix="PTYCHO_EXEC_", extra="forbid")

    plain = create_model("plain", __base__=Base, **fields)

    class FromToml(plain):  # type: ignore[misc,valid-type]
        @classmethod
        def settings_customise_sources(cls, settings_cls: Any, **_: Any) -> Any:
            return (TomlConfigSettingsSource(settings_cls, NOWHERE / "a.toml"),)

    def toml(name: str) -> str | None:
        (NOWHERE / "a.toml").write_text(f"{_quoted(name)} = 7\n")
        return _told(FromToml, ValidationError, TheirError)

    def dotenv(name: str) -> str | None:
        path = NOWHERE / "b.env"
        path.write_text(f"'{name}'=7\n")
        return _told(lambda: plain(_env_file=path), ValidationError, TheirError)

    def flag(word: str) -> str | None:
        return _told(
            lambda: plain(_cli_parse_args=[f"{word}=7"], _cli_kebab_case=True),
            SystemExit,
            ValidationError,
            TheirError,
        )

    return {
        "keyword": ("field", lambda name: _told(lambda: plain(**{name: VALUE}), ValidationError)),
        "flag": ("flag", flag),
        "environment": (
            "variable",
            lambda name: _told(lambda: _with_environ({name: "7"}, plain), ValidationError, TheirError),
        ),
        ".env": ("variable", dotenv),
        "TOML": ("field", toml),
    }


def lightning_cli() -> dict[str, tuple[str, Teller]]:
    """LightningCLI's parser (jsonargparse), with our fields as its own section."""
    from jsonargparse import Namespace  # noqa: F401  (LightningCLI needs it)
    from lightning.pytorch.cli import LightningArgumentParser

    parser = LightningArgumentParser(default_env=True, env_prefix="PTYCHO_EXEC", exit_on_error=False)
    for name, spec in field_specs().items():
        parser.add_argument(f"--{name}", type=Any, default=spec.default)
    parser.add_argument("--config", action="config")
    from jsonargparse import ArgumentError

    def env(name: str) -> str | None:
        return _told(
            lambda: _with_environ({name: "7"}, lambda: parser.parse_args([])), ArgumentError, SystemExit
        )

    def yaml(name: str) -> str | None:
        path = NOWHERE / "c.yaml"
        path.write_text(f"{_quoted(name)}: 7\n")
        return _told(lambda: parser.parse_args([f"--config={path}"]), ArgumentError, SystemExit)

    def flag(name: str) -> str | None:
        return _told(lambda: parser.parse_args([f"--{name}=7"]), ArgumentError, SystemExit)

    return {
        "flag": ("field", flag),
        "environment": ("variable", env),
        "YAML": ("field", yaml),
    }


def hydra() -> dict[str, tuple[str, Teller]]:
    """Hydra's compose API with a structured config; it has no environment layer."""
    from dataclasses import field as dataclass_field
    from dataclasses import make_dataclass

    from hydra import compose, initialize
    from hydra.core.config_store import ConfigStore
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    rows = [(name, Any, dataclass_field(default=spec.default)) for name, spec in field_specs().items()]
    Settings = make_dataclass("Settings", rows)
    ConfigStore.instance().store(name="settings", node=Settings)

    def flag(name: str) -> str | None:
        with initialize(version_base=None, config_path=None):
            return _told(lambda: compose("settings", overrides=[f"{name}=7"]), HydraException)

    def yaml(name: str) -> str | None:
        return _told(
            lambda: OmegaConf.merge(OmegaConf.structured(Settings), {name: VALUE}), OmegaConfBaseException
        )

    return {"flag": ("field", flag), "YAML": ("field", yaml)}


def dynaconf() -> dict[str, tuple[str, Teller]]:
    """Dynaconf with a validator per field and its own check for what is not validated."""
    from dynaconf import Dynaconf, Validator
    from dynaconf.validator import ValidationError

    validators = [Validator(name, default=spec.default) for name, spec in field_specs().items()]

    def load(**options: Any) -> Any:
        settings = Dynaconf(envvar_prefix="PTYCHO_EXEC", validators=validators, environments=False, **options)
        settings.validators.validate()
        return settings.as_dict()

    def env(name: str) -> str | None:
        return _told(lambda: _with_environ({name: "7"}, load), ValidationError)

    def toml(name: str) -> str | None:
        path = NOWHERE / "d.toml"
        path.write_text(f"{_quoted(name)} = 7\n")
        return _told(lambda: load(settings_files=[str(path)]), ValidationError)

    return {"environment": ("variable", env), "TOML": ("field", toml)}


PEERS: dict[str, Callable[[], dict[str, tuple[str, Teller]]]] = {
    "pydantic-settings": pydantic_settings,
    "LightningCLI": lightning_cli,
    "Hydra": hydra,
    "dynaconf": dynaconf,
}


def report(system: str, tallies: Mapping[str, Tally]) -> bool:
    """Print the rows of one system; return whether nothing was accepted and suggestions are right."""
    for source, tally in tallies.items():
        accepted = f"{len(tally.accepted)} of {tally.tried}"
        print(f"{system:18} {source:12} {accepted:>16} {tally.suggested:10.1%}")
    return all(not tally.accepted and tally.suggested >= 0.95 for tally in tallies.values())


def plain(tallies: Mapping[str, Tally]) -> dict[str, dict[str, float]]:
    """Return the figures of one system by source."""
    return {
        source: {"tried": tally.tried, "accepted": len(tally.accepted), "suggested": tally.suggested}
        for source, tally in tallies.items()
    }


def main() -> int:
    import common

    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--quick", action="store_true", help="a tenth of the slips")
    options.add_argument("--misses", action="store_true", help="list our slips that got another suggestion")
    options.add_argument("--json", type=Path, metavar="FILE", help="results [benchmarks/results/NAME.json]")
    space = options.parse_args()
    print(f"{'system':18} {'source':12} {'accepted typos':>16} {'suggested':>10}")
    data, good, missed = {}, True, []
    for model in MODELS:
        MODEL.set(model)
        ours = sweep(OURS, 0.1 if space.quick else 1.0)
        good = report(model.__name__, ours) and good
        data[model.__name__] = plain(ours)
        missed += [
            (source, slip, suggested) for source, tally in ours.items() for slip, suggested in tally.wrong
        ]
    MODEL.set(ExecutionSettings)
    for name, make in PEERS.items():
        try:
            tellers = make()
        except ImportError as error:
            print(f"{name:18} not installed ({error.name}); pip install ptycho-exec[bench]")
            continue
        theirs = sweep(tellers, 0.02)
        report(name, theirs)
        data[name] = plain(theirs)
    if space.misses:
        for source, slip, suggested in missed:
            print(f"{source}: {slip.name} -> {suggested}, meant {slip.meant}")
    common.write_json("typo_sweep", data, space.json)
    return 0 if good else 1


if __name__ == "__main__":
    raise SystemExit(main())
