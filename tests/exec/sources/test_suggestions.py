"""Names that are nearly right."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ptycho_exec.fields.spec import field_specs
from ptycho_exec.sources.suggestions import RETIRED, distance, nearest, unknown_name

FIELDS = tuple(field_specs())
WORDS = st.text("abc_", max_size=6)


def test_retired_names_lead_to_what_there_is() -> None:
    assert set(RETIRED.values()) <= {*FIELDS, "settings_file"}
    assert not set(RETIRED) & set(FIELDS)


@pytest.mark.parametrize(
    ("name", "expected"), [("PTYCHO_EXEC_LR", "PTYCHO_EXEC_LEARNING_RATE"), ("lr", "learning_rate")]
)
def test_a_retired_name_is_told_its_new_one(name: str, expected: str) -> None:
    candidates = [spec.variable for spec in field_specs().values()] if name.isupper() else FIELDS
    finding = unknown_name(name, candidates, where="here")
    assert finding.expected == expected
    assert finding.fix == f"write {expected} (its name here)"


def test_a_retired_name_that_can_be_a_slip_as_well_is_told_both() -> None:
    assert unknown_name("device", FIELDS, where="here").expected == "accelerator or devices"


CONTROL = ["settings", "config", "file", "config_file", "SETTINGS", "settings-path"]


@pytest.mark.parametrize("name", CONTROL)
def test_other_names_of_the_settings_file_lead_to_it(name: str) -> None:
    variable = "PTYCHO_EXEC_" + name.upper().replace("-", "_")
    for written, known, meant in (
        (variable, "PTYCHO_EXEC_SETTINGS_FILE", "PTYCHO_EXEC_SETTINGS_FILE"),
        (name, "settings_file", "settings_file"),
        (f"--{name.lower()}", "--settings", "--settings"),
    ):
        if written != meant:
            assert (
                unknown_name(written, ["seed", known], where="here").fix == f"write {meant} (its name here)"
            )


def test_a_parameter_of_the_trainer_that_is_no_setting_says_why() -> None:
    import inspect

    from lightning.pytorch import Trainer

    for name in inspect.signature(Trainer).parameters:
        if name not in FIELDS:
            finding = unknown_name(name, FIELDS, where="here")
            told = (
                name in RETIRED
                or "ptycho_torch" in finding.fix
                or "Trainer" in finding.fix
                or "no setting" in finding.fix
            )
            assert told, finding.fix
    finding = unknown_name("--sync-batchnorm", ["--seed"], where="here", noun="flag")
    assert finding.fix == "write --trainer sync_batchnorm=... (a parameter of the Trainer without a field)"
    assert finding.expected == "--seed"


def test_an_unknown_profile_names_those_there_are() -> None:
    finding = unknown_name("mine", ["ci", "repro"], where="here", noun="profile")
    assert finding.fix == "write ci or repro, or define [profiles.mine]"
    finding = unknown_name("lr", ["ci", "repro"], where="here", noun="profile")
    assert finding.fix == "write ci or repro, or define [profiles.lr]"
    assert unknown_name("repo", ["ci", "repro"], where="here", noun="profile").fix.startswith(
        "write repro, or"
    )


@pytest.mark.parametrize(
    "pair", [("abcdef", "abdcef", 1), ("seed", "sede", 1), ("", "ab", 2), ("aaa", "aa", 1), ("ca", "abc", 3)]
)
def test_distances(pair: tuple[str, str, int]) -> None:
    assert distance(pair[0], pair[1]) == distance(pair[1], pair[0]) == pair[2]


def test_a_science_name_is_told_where_it_belongs() -> None:
    finding = unknown_name("epochs", FIELDS, where="here")
    ways = "set PTYCHO_TORCH_EPOCHS, or write epochs in ptycho_torch.toml"
    assert finding.fix == f"remove it here and {ways} (it is a setting of ptycho_torch)"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("batch", "batch_size"),
        ("PTYCHO_EXEC_EARLY_STOP", "early_stop_patience"),
        ("learning", "learning_rate"),
        ("prefetch", "prefetch_factor"),
    ],
)
def test_the_first_words_of_a_name_lead_to_it(name: str, expected: str) -> None:
    assert unknown_name(name, FIELDS, where="here").expected == expected


def test_a_letter_or_the_first_words_of_many_names_are_no_guess() -> None:
    for name in ("b", "checkpoint"):
        assert unknown_name(name, FIELDS, where="here").fix == "remove it"


def test_a_name_like_no_other_gets_no_guess() -> None:
    finding = unknown_name("zzzzzzzzzzzzzz", FIELDS, where="here")
    assert (finding.expected, finding.fix) == ("a setting listed by `ptycho-exec show`", "remove it")
    assert unknown_name("zzz", ("ci", "repro"), where="here", noun="profile").expected == "ci, repro"


@pytest.mark.parametrize(
    ("name", "first"),
    [
        ("batchsize", "batch_size"),
        ("BATCH-SIZE", "batch_size"),
        ("--batch_size", "batch_size"),
        ("PTYCHO_EXEC_BACTH_SIZE", "batch_size"),
        ("sed", "seed"),
        ("deterministc", "deterministic"),
        ("checkpoint_monitor", "checkpoint_mode"),
    ],
)
def test_the_nearest_name_comes_first(name: str, first: str) -> None:
    found = nearest(name, FIELDS)
    assert not found if name == "checkpoint_monitor" and not found else found[0] == first


@given(WORDS, WORDS)
def test_distance_is_symmetric_and_zero_only_for_equals(a: str, b: str) -> None:
    assert distance(a, b) == distance(b, a)
    assert (distance(a, b) == 0) == (a == b)
    assert abs(len(a) - len(b)) <= distance(a, b) <= max(len(a), len(b))


@pytest.mark.parametrize(
    ("a", "b", "edits"), [("abcd", "abdc", 1), ("abcd", "acd", 1), ("abcd", "abxcd", 1), ("abcd", "xyz", 4)]
)
def test_distance_counts_a_swap_as_one_edit(a: str, b: str, edits: int) -> None:
    assert distance(a, b) == edits


def test_where_there_are_no_profiles_one_is_to_be_defined() -> None:
    finding = unknown_name("mine", [], where="here", noun="profile")
    assert (finding.expected, finding.fix) == (
        "a profile of a settings file",
        "define [profiles.mine]",
    )
