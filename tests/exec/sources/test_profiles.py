"""Profiles: asked for, extended, wrong; and keys in tables where they set nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from ptycho_exec.errors import SettingsError

if TYPE_CHECKING:
    from conftest import Place


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


@pytest.mark.parametrize(
    ("text", "reported"),
    [
        ("[tool.ptycho_exec]\nseed = 1\n", [("seed", 2)]),
        ("[ptycho_exec]\nseed = 1\nfoo = 2\n", [("seed", 2), ("foo", 3)]),
        ("[a.b.c]\nseed = 1\n[a.d]\nx = 1\n", [("seed", 2), ("d", 3)]),
        ("[a]\nfoo = 1\n", [("a", 1)]),
    ],
)
def test_settings_in_the_wrong_table_are_found_at_any_depth(
    place: Place, text: str, reported: list[tuple[str, int]]
) -> None:
    place.write("ptycho_exec.toml", text)
    findings = place.resolve().findings
    assert [finding.line for finding in findings] == [line for _, line in reported]
    assert all(name in finding.what for (name, _), finding in zip(reported, findings, strict=True))


THREE = """
[profiles.a]
seed = 1
batch_size = 2
num_workers = 3
[profiles.b]
extends = "c"
seed = 4
[profiles.c]
seed = 5
batch_size = 6
"""


@pytest.mark.parametrize("how", ["argument", "list", "variable", ".env", "file", "file's text"])
def test_of_several_profiles_the_later_one_wins(place: Place, how: str) -> None:
    asked: dict[str, Any] = {}
    text = THREE
    if how == "argument":
        asked["profile"] = "a, b"
    elif how == "list":
        asked["profile"] = ["a", "b"]
    elif how == "variable":
        place.environ["PTYCHO_EXEC_PROFILE"] = "a,b"
    elif how == ".env":
        place.write(".env", "PTYCHO_EXEC_PROFILE=a,b\n")
    else:
        text = ('profile = ["a", "b"]\n' if how == "file" else 'profile = "a,b"\n') + THREE
    place.write("ptycho_exec.toml", text)
    resolution = place.resolve(**asked)
    assert resolution.findings == ()
    assert dict(resolution.values) == {"seed": 4, "batch_size": 6, "num_workers": 3}
    assert resolution.profile is not None
    assert [name.strip() for name in resolution.profile.split(",")] == ["a", "b"]
    chain = resolution.origins["seed"]
    places = [origin.place for origin in (chain, *chain.shadowed)]
    assert places == ["profile:b", "profile:c", "profile:a", "default"]
    assert resolution.origins["num_workers"].place == "profile:a"
    reverse = place.resolve(profile="b,a")
    assert dict(reverse.values) == {"seed": 1, "batch_size": 2, "num_workers": 3}
    assert reverse.origins["seed"].shadowed[0].place == "profile:b"


def test_every_unknown_one_of_several_profiles_is_reported(place: Place) -> None:
    place.write("ptycho_exec.toml", THREE)
    findings = place.resolve(profile="nope,a,,never,a").errors
    whats = ["the name of the profile is empty", "unknown profile 'never'", "unknown profile 'nope'"]
    assert sorted(finding.what for finding in findings) == whats


def test_a_list_of_profiles_in_a_file_holds_names(place: Place) -> None:
    for value in ("[]", "[1]", '["a", ""]', "3", '" "'):
        place.write("ptycho_exec.toml", f"profile = {value}\n{THREE}")
        (finding,) = place.resolve().errors
        assert (finding.line, finding.what[:24]) == (1, "profile must be the name")


def test_the_same_profile_twice_is_the_same_profile(place: Place) -> None:
    place.write("ptycho_exec.toml", THREE)
    assert place.resolve(profile="a,a").values == place.resolve(profile="a").values


@pytest.mark.parametrize(
    ("text", "what", "line"),
    [
        ('[profiles.x]\nextends = "nope"\nseed = 1\n', "unknown profile 'nope'", 2),
        ('[profiles.x]\nseed = 1\n[profiles.y]\nextends = "xx"\n', "unknown profile 'xx'", 4),
        ('[profiles.x]\nextends = "x"\n', "profile x extends itself, directly or through others", 2),
    ],
)
def test_what_a_profile_that_nobody_asked_for_extends_is_checked(
    place: Place, text: str, what: str, line: int
) -> None:
    place.write("ptycho_exec.toml", text)
    (finding,) = place.resolve(profile="ci").errors
    assert (finding.what, finding.line) == (what, line)


def test_a_profile_of_a_broken_file_is_not_called_unknown(place: Place) -> None:
    place.write("ptycho_exec.toml", "[profiles.mine]\nseed =\n")
    (finding,) = place.resolve(profile="mine").errors
    assert finding.code == "broken-file"


def test_a_profile_or_file_that_was_asked_for_and_changes_nothing_is_noted(place: Place) -> None:
    place.write("ptycho_exec.toml", '[profiles.empty]\ndescription = "none"\n[profiles.x]\nextends="empty"\n')
    place.write("a.toml", "seed = 1\n")
    place.write("b.toml", '"$schema" = "x"\n')
    place.write("c.toml", "[profiles.x]\nseed = 1\n")

    def notes(**request: Any) -> list[str]:
        resolution = place.resolve(**request)
        assert {finding.code for finding in resolution.findings} <= {"no-effect"}
        return [finding.what.replace(f"{place.cwd}/", "") for finding in resolution.notices]

    assert notes(profile="empty") == ["profile empty has no effect: it sets nothing"]
    assert notes(profile="x") == ["profile x has no effect: it sets nothing"]
    assert notes(settings_file="b.toml") == ["b.toml has no effect: it sets nothing"]
    assert notes(settings_file="a.toml") == []
    assert notes(settings_file="c.toml") == []
    shadowed = "has no effect: all its values are set above it"
    assert notes(settings_file="a.toml", flags={"seed": "1"}) == [f"a.toml {shadowed}"]
    assert notes(settings_file="c.toml", profile="x", flags={"seed": "1"}) == [f"profile x {shadowed}"]
    assert notes(settings_file="c.toml", profile="x,empty") == [
        "profile empty has no effect: it sets nothing"
    ]


def test_a_chain_is_checked_from_every_profile_that_begins_it(place: Place) -> None:
    """From `b` the chain ends in `a` of this file again, although from `a` it ends in the user's file."""
    place.write("ptycho_exec.toml", '[profiles.a]\nextends = "b"\n[profiles.b]\nextends = "a"\n')
    place.write_user_file("[profiles.a]\nseed = 1\n")
    (finding,) = place.resolve(profile="ci").errors
    assert (finding.what, finding.line) == ("profile b extends itself, directly or through others", 2)


def test_profiles_that_extend_the_same_broken_one_report_it_once(place: Place) -> None:
    rows = [f'[profiles.p{i}]\nextends = "broken"\n' for i in range(20)]
    place.write("ptycho_exec.toml", f'{"".join(rows)}[profiles.broken]\nextends = "nope"\n')
    findings = place.resolve(profile="ci").errors
    assert [finding.line for finding in findings] == [42]
