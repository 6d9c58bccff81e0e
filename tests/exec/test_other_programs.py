"""The settings inside programs of other people, with a variable set: it acts, or that is reported."""

from __future__ import annotations

import pickle
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from pydantic_settings import CliApp

from ptycho_exec.errors import SettingsError
from ptycho_exec.settings import ExecutionSettings
from ptycho_exec.sources.origins import Kind

if TYPE_CHECKING:
    from conftest import Place

VARIABLE = "PTYCHO_EXEC_BATCH_SIZE"
ALL_GIVEN = f"every field was given in the call, so these have no effect: {VARIABLE}"


@pytest.fixture(autouse=True)
def variable(clean_process: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "4")


def check(settings: ExecutionSettings) -> None:
    """What was given counts, and so does the variable, with its origin."""
    assert (settings.seed, settings.batch_size) == (8, 4)
    assert settings.origins["batch_size"].kind is Kind.ENVIRONMENT


def test_pydantic_settings_cli_app() -> None:
    check(CliApp.run(ExecutionSettings, cli_args=["--seed", "8"]))


# --- Hydra ------------------------------------------------------------------------------------------------


def test_hydra_instantiate() -> None:
    hydra = pytest.importorskip("hydra.utils", reason="it is part of the extra dev")
    node = {"_target_": "ptycho_exec.ExecutionSettings", "seed": 8, "devices": [0, 1]}
    settings = hydra.instantiate(node)
    check(settings)
    assert settings.devices == (0, 1)
    assert Path(settings.origins["seed"].file) == Path(__file__)


def test_hydra_composed_config_and_its_errors() -> None:
    omegaconf = pytest.importorskip("omegaconf", reason="it is part of the extra dev")
    config = omegaconf.OmegaConf.create({"execution": {"seed": 8, "devices": [0, 1]}})
    check(ExecutionSettings(overrides=omegaconf.OmegaConf.to_container(config.execution)))
    config.execution.sed = 1
    with pytest.raises(SettingsError, match="unknown setting 'sed'"):
        ExecutionSettings(overrides=omegaconf.OmegaConf.to_container(config.execution))


# --- jsonargparse, which LightningCLI is built on; tyro ---------------------------------------------------


def test_jsonargparse_with_a_mapping() -> None:
    jsonargparse = pytest.importorskip("jsonargparse", reason="it is part of the extra dev")
    parser = jsonargparse.ArgumentParser()
    parser.add_argument("--execution", type=dict[str, Any], default={})
    given = parser.parse_args(["--execution.seed", "8", "--execution.devices", "[0, 1]"])
    settings = ExecutionSettings(overrides=given.execution)
    check(settings)
    assert settings.devices == (0, 1)


def test_jsonargparse_with_the_class_without_defaults() -> None:
    jsonargparse = pytest.importorskip("jsonargparse", reason="it is part of the extra dev")
    parser = jsonargparse.ArgumentParser()
    parser.add_class_arguments(ExecutionSettings, "execution")
    given = parser.parse_args(["--execution.seed", "8"], defaults=False)
    check(ExecutionSettings(**given.execution.as_dict()))


def test_jsonargparse_with_the_class_and_all_its_defaults_is_reported() -> None:
    jsonargparse = pytest.importorskip("jsonargparse", reason="it is part of the extra dev")
    parser = jsonargparse.ArgumentParser()
    parser.add_class_arguments(ExecutionSettings, "execution")
    given = parser.parse_args(["--execution.seed", "8"])
    with pytest.warns(UserWarning, match=ALL_GIVEN):
        settings = ExecutionSettings(**given.execution.as_dict())
    assert settings.batch_size == 16
    assert [notice.code for notice in settings.notices] == ["no-effect"]
    assert [origin.place for origin in settings.origins["batch_size"].shadowed] == [VARIABLE, "default"]


def test_tyro_with_resolved_settings_as_defaults() -> None:
    tyro = pytest.importorskip("tyro", reason="it is part of the extra dev")
    settings = tyro.cli(ExecutionSettings, args=["--seed", "8"], default=ExecutionSettings())
    assert (settings.seed, settings.batch_size) == (8, 4)
    with pytest.warns(UserWarning, match=ALL_GIVEN):
        assert tyro.cli(ExecutionSettings, args=["--seed", "8"]).batch_size == 16


def test_a_call_of_every_field_that_hides_nothing_is_not_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE)
    assert ExecutionSettings(**dict(ExecutionSettings.from_values({"seed": 8}))).notices == ()


# --- servers, caches, processes ---------------------------------------------------------------------------


def test_fastapi_takes_settings_as_a_body_and_reads_nothing_else() -> None:
    fastapi = pytest.importorskip("fastapi", reason="it is part of the extra dev")
    from fastapi.testclient import TestClient

    app = fastapi.FastAPI()

    def run(settings: ExecutionSettings) -> dict[str, int]:
        return {"seed": settings.seed, "batch_size": settings.batch_size}

    run.__annotations__ = {"settings": ExecutionSettings, "return": dict[str, int]}
    app.post("/run")(run)
    client = TestClient(app)
    assert client.post("/run", json={"seed": 8}).json() == {"seed": 8, "batch_size": 16}
    wrong = client.post("/run", json={"sed": 8, "batch_size": "x"})
    assert wrong.status_code == 422
    assert "unknown setting 'sed'" in wrong.text
    schema = client.get("/openapi.json").json()["components"]["schemas"]["ExecutionSettings"]
    assert set(schema["properties"]) == set(ExecutionSettings.model_fields)


def test_joblib_and_cloudpickle_keep_values_and_origins(tmp_path: Path) -> None:
    joblib = pytest.importorskip("joblib", reason="it is part of the extra dev")
    cloudpickle = pytest.importorskip("cloudpickle", reason="it is part of the extra dev")
    settings = ExecutionSettings(seed=8)
    joblib.dump(settings, tmp_path / "settings.joblib")
    for other in (joblib.load(tmp_path / "settings.joblib"), pickle.loads(cloudpickle.dumps(settings))):
        check(other)
        assert other == settings
        assert joblib.hash(dict(other)) == joblib.hash(dict(settings))


@pytest.mark.slow
def test_a_pool_of_joblib_gets_the_settings_as_they_are(tmp_path: Path) -> None:
    pytest.importorskip("joblib", reason="it is part of the extra dev")
    code = (
        "from joblib import Parallel, delayed\n"
        "from ptycho_exec import ExecutionSettings\n"
        "s = ExecutionSettings(seed=8)\n"
        "print(Parallel(n_jobs=2)(delayed(getattr)(s, 'batch_size') for _ in range(2)))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert done.stdout == "[4, 4]\n", done.stderr
