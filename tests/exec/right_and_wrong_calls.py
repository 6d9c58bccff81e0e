"""Calls as users write them: a type checker must flag the lines that end with `# wrong`, and no others."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, assert_type

from ptycho_exec import ExecutionSettings, Origin, PyTorchExecutionConfig, SettingsError, override_settings

# --- right
settings = ExecutionSettings()
settings = ExecutionSettings(batch_size=8, devices=(0, 1), deterministic="warn", limit_train_batches=0.5)
settings = ExecutionSettings(devices="auto", max_time=None, gradient_clip_val=1, logger_backend="csv")
settings = ExecutionSettings(profile="ci", settings_file=Path("run.toml"), overrides={"seed": 1})
settings = PyTorchExecutionConfig(learning_rate=1e-3, factory_defaults={"batch_size": 8})
settings = ExecutionSettings.from_values({"seed": 1}).with_overrides(seed=2)
assert_type(settings, ExecutionSettings)
assert_type(settings.batch_size, int)
assert_type(settings.max_time, str | None)
assert_type(settings.explain("seed"), str)
assert_type(settings.origins["seed"], Origin)
assert_type(settings.model_copy(update={"seed": 3}), ExecutionSettings)
settings = ExecutionSettings(_env_file=None, _secrets_dir=Path("secrets"))
with override_settings(seed=1):
    pass
try:
    ExecutionSettings(seed=1)
except SettingsError as error:
    print(error.errors(), error.findings[0].code)


class Mine(ExecutionSettings):
    """Settings of another program."""

    program: ClassVar[str] = "mine"

    voltage: float = 1.5
    """Kilovolts."""


mine = Mine(batch_size=8, voltage=2.0)
mine = Mine(_env_file=(".env", Path("other.env")))
assert_type(mine.with_overrides(voltage=1.0), Mine)

# --- wrong: a value, a name, a change
ExecutionSettings(batch_size="x")  # wrong
ExecutionSettings(bach_size=8)  # wrong
ExecutionSettings(precision="16")  # wrong
ExecutionSettings(compile=None)  # wrong
ExecutionSettings(devices="all")  # wrong
ExecutionSettings(profile=3)  # wrong
ExecutionSettings(8)  # wrong
Mine(voltage="high")  # wrong
Mine(volt=1.0)  # wrong
settings.seed = 3  # wrong
settings.trainer["min_epochs"] = 3  # wrong
print(settings.bach_size)  # wrong
mine.voltage = 2.0  # wrong
