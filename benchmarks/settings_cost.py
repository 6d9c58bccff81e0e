"""What settings cost: import, one full resolution, and `ptycho-exec show`, beside other systems.

Every system has the same fields and reads the same values: twenty from the environment and two files of
ten. Ours also keeps an origin with file and line for each value, and checks every name. Times are of the
processor, so that a busy machine changes them little; ratios are to bare pydantic-settings in the same run.
Systems that are not installed are left out (`pip install ptycho-exec[bench]`).

    python benchmarks/settings_cost.py [--rounds 200]
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ptycho_exec import ExecutionSettings
from ptycho_exec.cli.reference import toml_value
from ptycho_exec.fields.spec import field_specs, format_value

SPECS = list(field_specs().values())
FROM_ENVIRON, FROM_FILE, FROM_PROJECT = SPECS[:20], SPECS[15:25], SPECS[20:30]
LIMITS = {"import": 200.0, "resolve": 5.0, "show": 500.0}
"""Milliseconds that we allow ourselves: median import, 95th percentile of a resolution, median show."""

IMPORTS = {
    "ptycho_exec": "import ptycho_exec",
    "ptycho_exec settings": "from ptycho_exec import ExecutionSettings",
    "pydantic-settings": "import pydantic_settings",
    "LightningCLI": "from lightning.pytorch.cli import LightningCLI",
    "Hydra": "import hydra",
    "dynaconf": "import dynaconf",
}
NEEDS = {"LightningCLI": "jsonargparse", "Hydra": "hydra", "dynaconf": "dynaconf"}


def installed(system: str) -> bool:
    return find_spec(NEEDS.get(system, "pydantic_settings")) is not None


# --- processes ------------------------------------------------------------------------------------------


def process_ms(*words: str) -> tuple[float, float]:
    """Return processor and wall milliseconds of one Python process."""
    start = time.perf_counter()
    pid = os.posix_spawn(
        sys.executable,
        [sys.executable, *words],
        os.environ,
        file_actions=[(os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0)],
    )
    _, status, usage = os.wait4(pid, 0)
    wall = time.perf_counter() - start
    if status:
        raise SystemExit(f"python {' '.join(words)} failed")
    return (usage.ru_utime + usage.ru_stime) * 1e3, wall * 1e3


def import_costs(rounds: int) -> dict[str, float]:
    """Return the median processor time of each import, less that of an empty Python, taken in turn."""
    systems = {name: code for name, code in IMPORTS.items() if installed(name)}
    taken: dict[str, list[float]] = {name: [] for name in ("empty", *systems)}
    for _ in range(rounds):
        taken["empty"].append(process_ms("-c", "pass")[0])
        for name, code in systems.items():
            taken[name].append(process_ms("-c", code)[0])
    empty = statistics.median(taken.pop("empty"))
    return {name: statistics.median(times) - empty for name, times in taken.items()}


def show_cost(rounds: int) -> float:
    """Return the median processor time of a whole `ptycho-exec show`."""
    return statistics.median(process_ms("-m", "ptycho_exec", "show")[0] for _ in range(rounds))


# --- one resolution -------------------------------------------------------------------------------------


def write_inputs(folder: Path) -> None:
    """Write the two files in the languages that the systems read, and set the variables."""
    for name, specs in (("named", FROM_FILE), ("ptycho_exec", FROM_PROJECT)):
        values = {spec.name: "none" if spec.default is None else spec.default for spec in specs}
        toml = "".join(f"{spec.name} = {toml_value(spec.default)}\n" for spec in specs)
        (folder / f"{name}.toml").write_text(toml)
        (folder / f"{name}.yaml").write_text("".join(f"{n}: {json.dumps(v)}\n" for n, v in values.items()))
    for spec in FROM_ENVIRON:
        os.environ[spec.variable] = format_value(spec.default)


def ours(folder: Path) -> Callable[[], object]:
    return lambda: ExecutionSettings(settings_file=folder / "named.toml")


def pydantic_settings(folder: Path) -> Callable[[], object]:
    from pydantic import create_model
    from pydantic_settings import BaseSettings, SettingsConfigDict, TomlConfigSettingsSource

    class Base(BaseSettings):
        model_config = SettingsConfigDict(env_prefix="PTYCHO_EXEC_", extra="forbid")

        @classmethod
        def settings_customise_sources(cls, settings_cls: Any, env_settings: Any, **_: Any) -> Any:
            files = [folder / "named.toml", folder / "ptycho_exec.toml"]
            return (env_settings, *(TomlConfigSettingsSource(settings_cls, file) for file in files))

    fields: Any = {spec.name: (Any, spec.default) for spec in SPECS}
    return create_model("plain", __base__=Base, **fields)


def lightning_cli(folder: Path) -> Callable[[], object]:
    from lightning.pytorch.cli import LightningArgumentParser

    parser = LightningArgumentParser(default_env=True, env_prefix="PTYCHO_EXEC")
    parser.add_argument("--config", action="config")
    for spec in SPECS:
        parser.add_argument(f"--{spec.name}", type=Any, default=spec.default)
    words = [f"--config={folder / name}" for name in ("ptycho_exec.yaml", "named.yaml")]
    return lambda: parser.parse_args(words)


def hydra(folder: Path) -> Callable[[], object]:
    from hydra import compose, initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra

    (folder / "main.yaml").write_text("defaults: [ptycho_exec, named, _self_]\n")
    GlobalHydra.instance().clear()
    initialize_config_dir(str(folder), version_base=None)
    return lambda: compose("main")


def dynaconf(folder: Path) -> Callable[[], object]:
    from dynaconf import Dynaconf, Validator

    files = [str(folder / name) for name in ("ptycho_exec.toml", "named.toml")]

    def load() -> object:
        validators = [Validator(spec.name, default=spec.default) for spec in SPECS]
        settings = Dynaconf(envvar_prefix="PTYCHO_EXEC", settings_files=files, validators=validators)
        return settings.as_dict()

    return load


SYSTEMS: dict[str, Callable[[Path], Callable[[], object]]] = {
    "ptycho_exec": ours,
    "pydantic-settings": pydantic_settings,
    "LightningCLI": lightning_cli,
    "Hydra": hydra,
    "dynaconf": dynaconf,
}


def resolve_costs(
    rounds: int, folder: Path, systems: Iterable[str] = SYSTEMS
) -> dict[str, tuple[float, float]]:
    """Return median and 95th percentile in processor milliseconds of one resolution, taken in turn."""
    calls = {name: make(folder) for name, make in SYSTEMS.items() if name in systems and installed(name)}
    taken: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            start = time.thread_time_ns()
            call()
            taken[name].append((time.thread_time_ns() - start) / 1e6)
    return {
        name: (statistics.median(times), statistics.quantiles(times, n=20)[-1])
        for name, times in taken.items()
    }


def write_large_files(folder: Path) -> None:
    """Add a `.env` and a `pyproject.toml` of 1,000 lines each, nearly all of them other programs'."""
    tables = "".join(f"[tool.t{i}]\na = {i}\nb = ['x', 'y']\nc = {{k = 1}}\n" for i in range(250))
    (folder / "pyproject.toml").write_text(f"{tables}[tool.ptycho_exec]\nseed = 3\n")
    lines = "".join(f"OTHER_{i}=value{i}\nSECRET_{i}='q{i}'\n" for i in range(500))
    (folder / ".env").write_text(f"{lines}PTYCHO_EXEC_DRIFT=warn\n")


def main() -> int:
    import common

    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("--rounds", type=int, default=200, help="resolutions of each system [200]")
    parser.add_argument("--json", type=Path, metavar="FILE", help="results [benchmarks/results/NAME.json]")
    space = parser.parse_args()
    rounds = space.rounds
    imports = import_costs(max(3, rounds // 25))
    show = show_cost(max(3, rounds // 25))
    folder = Path(tempfile.mkdtemp(prefix="settings_cost_"))
    os.chdir(folder)
    write_inputs(folder)
    costs = resolve_costs(rounds, folder)
    write_large_files(folder)
    start = time.thread_time_ns()
    ours(folder)()
    first = (time.thread_time_ns() - start) / 1e6
    large = resolve_costs(rounds, folder, ("ptycho_exec",))["ptycho_exec"]
    print(f"{'system':22} {'import ms':>10} {'ratio':>6} {'resolve ms':>11} {'p95 ms':>8} {'ratio':>6}")
    plain_import, plain_resolve = imports["pydantic-settings"], costs["pydantic-settings"][0]
    for name, taken in imports.items():
        row = f"{name:22} {taken:10.1f} {taken / plain_import:6.2f}"
        if name in costs:
            median, late = costs[name]
            row += f" {median:11.2f} {late:8.2f} {median / plain_resolve:6.2f}"
        print(row)
    print(f"ptycho-exec show: {show:.0f} ms in all")
    print("a .env and a pyproject.toml of 1,000 lines:", end=" ")
    print(f"first resolution {first:.2f} ms, then {large[0]:.2f} ms, p95 {large[1]:.2f}")
    data = {"import_ms": imports, "resolve_ms": costs, "large_files_ms": (first, *large), "show_ms": show}
    common.write_json("settings_cost", data, space.json)
    found = {"import": imports["ptycho_exec"], "resolve": costs["ptycho_exec"][1], "show": show}
    over = [f"{name} {found[name]:.1f} > {limit} ms" for name, limit in LIMITS.items() if found[name] > limit]
    print("within our limits" if not over else f"over our limits: {', '.join(over)}")
    return 1 if over else 0


if __name__ == "__main__":
    raise SystemExit(main())
