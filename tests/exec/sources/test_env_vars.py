"""Environment variables: ours, misspelt, other programs'; and what their text means."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from ptycho_exec.fields.spec import field_specs
from ptycho_exec.sources.env_vars import TRACKERS

if TYPE_CHECKING:
    from conftest import Place


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


@pytest.mark.parametrize("where", ["environment", ".env"])
@pytest.mark.parametrize(
    ("backend", "name"), [(word, name) for word, names in TRACKERS.items() for name in names]
)
def test_a_variable_of_the_chosen_tracker_that_does_not_act_is_noted(
    place: Place, backend: str, name: str, where: str
) -> None:
    if where == ".env":
        place.write(".env", f"{name}=s3cr3t\n")
    else:
        place.environ[name] = "s3cr3t"
    assert place.resolve().findings == ()  # no such logger, nothing to say
    other = "csv" if backend == "wandb" else "wandb"
    assert place.resolve(flags={"logger_backend": other}).findings == ()
    (note,) = place.resolve(arguments={"logger_backend": backend}).findings
    assert (note.level, note.code) == ("note", "no-effect")
    assert note.what.startswith(f"{name} has no effect on logger {backend} here: ")
    assert "s3cr3t" not in note.render()
    if TRACKERS[backend][name] in field_specs():
        assert field_specs()[TRACKERS[backend][name]].variable in note.what


# --- a folder of secrets ------------------------------------------------------------------------------------


def test_a_misspelt_file_in_a_folder_of_secrets_is_an_error(place: Place) -> None:
    secret = place.write("s/PTYCHO_EXEC_BACH_SIZE", "4")
    (finding,) = place.resolve(secrets=("s",)).errors
    assert (finding.code, finding.where) == ("unknown-name", str(secret))
    assert finding.fix == "rename it to PTYCHO_EXEC_BATCH_SIZE, or remove it"
    secret.rename(secret.with_name("PTYCHO_EXEC_BATCH_SIZE"))
    assert place.settings(secrets=("s",)).batch_size == 4
    wrong = place.write("s/ptychoexec_seed", "4")
    (finding,) = place.resolve(secrets=("s",)).errors
    assert (finding.code, finding.fix) == ("wrong-prefix", "rename it to PTYCHO_EXEC_SEED")
    wrong.rename(wrong.with_name("ptycho_exec_seed"))
    assert place.settings(secrets=("s",)).seed == 4


def test_files_of_others_in_a_folder_of_secrets_are_left_alone(place: Place) -> None:
    place.write("s/db_password", "x")
    place.write("s/..data/ptycho_exec_sed", "4")
    own = place.write("s/ptycho_exec_certificate.pem", "x")
    found = place.resolve(secrets=("s",))
    assert [(f.level, f.what) for f in found.findings] == [
        ("note", f"{own} is not read: no setting has that name")
    ]


def test_one_name_of_a_table_and_an_empty_file_in_a_folder_of_secrets(place: Place) -> None:
    place.write("s/ptycho_exec_trainer__min_epochs", "3\n")
    place.write("s/ptycho_exec_seed", "\n")
    settings = place.settings(secrets=("s",))
    assert (settings.trainer, settings.seed) == ({"min_epochs": 3}, 42)
    assert [notice.code for notice in settings.notices] == ["empty-variable"]


def test_the_last_folder_of_secrets_wins_and_shadows_the_others(place: Place) -> None:
    first, last = (
        place.write(f"{folder}/ptycho_exec_seed", text) for folder, text in (("a", "1"), ("b", "2"))
    )
    origin = place.settings(secrets=("a", "b")).origins["seed"]
    assert (origin.value, origin.place) == (2, str(last))
    assert [(below.value, below.place) for below in origin.shadowed[:1]] == [(1, str(first))]


def test_a_secret_that_is_no_text_is_one_finding(place: Place) -> None:
    path = place.write("s/ptycho_exec_seed", "")
    path.write_bytes(b"\xff\xfe4\0")
    (finding,) = place.resolve(secrets=("s",)).errors
    assert (finding.code, finding.file) == ("unreadable-file", str(path))
