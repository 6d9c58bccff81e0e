"""Origins: what they say, what they shadow, what they hide."""

from __future__ import annotations

import dataclasses
import json
import pickle

import pytest

from ptycho_exec.errors import Finding, SettingsError, redact
from ptycho_exec.sources.origins import Kind, Layer, Origin, Resolution, SearchedFile


@pytest.mark.parametrize(
    ("origin", "text"),
    [
        (Origin(Kind.DEFAULT, "default", 16), "default"),
        (Origin(Kind.FLAG, "--batch-size", 8), "flag --batch-size"),
        (Origin(Kind.ENVIRONMENT, "PTYCHO_EXEC_SEED", 1), "environment PTYCHO_EXEC_SEED"),
        (Origin(Kind.PROJECT_FILE, "/a/b.toml:3", 1, file="/a/b.toml", line=3), "project-file (/a/b.toml:3)"),
        (Origin(Kind.PROFILE, "profile:ci", 1, file="/ci.toml", line=2), "profile:ci (/ci.toml:2)"),
        (
            Origin(Kind.DOTENV, "PTYCHO_EXEC_SEED", 1, file="/.env", line=9),
            "dotenv PTYCHO_EXEC_SEED (/.env:9)",
        ),
        (Origin(Kind.FACTORY, "factory", 64, reason="inference"), "factory, inference"),
        (Origin(Kind.ARGUMENT, "from_values()", 1, file="/m.json"), "argument from_values() (/m.json)"),
    ],
)
def test_an_origin_says_where(origin: Origin, text: str) -> None:
    assert origin.describe() == text


def test_an_origin_shadows_a_flat_list() -> None:
    default, low = Origin(Kind.DEFAULT, "default", 16), Origin(Kind.USER_FILE, "f:1", 8)
    top = Origin(Kind.FLAG, "--batch-size", 4).shadowing([low.shadowing([default]), default])
    assert [origin.value for origin in top.shadowed] == [8, 16]
    assert all(origin.shadowed == () for origin in top.shadowed)


def test_an_origin_is_frozen_picklable_and_plain_json() -> None:
    origin = Origin(Kind.DOTENV, "PTYCHO_EXEC_SEED", 1, "1", "/.env", 9, "why")
    assert pickle.loads(pickle.dumps(origin)) == origin
    with pytest.raises(dataclasses.FrozenInstanceError):
        origin.line = 3  # type: ignore[misc]
    assert json.loads(json.dumps(origin.to_json())) == {
        "kind": "dotenv",
        "place": "PTYCHO_EXEC_SEED",
        "file": "/.env",
        "line": 9,
        "raw": "1",
        "reason": "why",
    }


def test_a_resolution_shows_names_but_no_values() -> None:
    shown = repr(Resolution({"tracking_uri": "t0ken"}, {}, (SearchedFile(Kind.DOTENV, "/.env", True),)))
    assert shown == "Resolution(tracking_uri, 0 findings)"
    assert Layer().entries == {}


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("https://u:p@h/x", "https://***@h/x"),
        ("mlflow+https://t@h", "mlflow+https://***@h"),
        ("a https://u:p@h b http://v:q@i", "a https://***@h b http://***@i"),
        ("https://h/?token=abc&n=1", "https://h/?token=***&n=1"),
        ("https://h/?n=1;X-Api-Key=abc", "https://h/?n=1;X-Api-Key=***"),
        ("https://h/?sig=abc#frag", "https://h/?sig=***#frag"),
        ("PASSWORD=abc", "PASSWORD=***"),
        ("u:p@h:5000", "***@h:5000"),
        ("http://localhost:5000/a@b", "http://localhost:5000/a@b"),
        ("/data/a@b:c", "/data/a@b:c"),
        ("val_loss", "val_loss"),
    ],
)
def test_redaction(text: str, shown: str) -> None:
    assert redact(text) == shown
    assert redact(redact(text)) == redact(text)


@pytest.mark.parametrize("value", [None, 3, 0.5, True, (0, 1)])
def test_redaction_leaves_other_values_alone(value: object) -> None:
    assert redact(value) is value


# --- findings as text, JSON and annotations ---------------------------------------------------------------

FULL = Finding("what, 50%", "a.toml:3", "this", "that", "x = \n   ^", "/work/a.toml", 3)


def test_a_finding_is_one_block() -> None:
    assert FULL.render().split("\n") == [
        "what, 50%",
        "  where:    a.toml:3",
        "  expected: this",
        "  fix:      that",
        "    x = ",
        "       ^",
    ]
    assert Finding("what").render() == "what"
    assert set(FULL.to_json()) == set(Finding.__slots__)


def test_a_finding_as_an_annotation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GITHUB_WORKSPACE", "/work")
    text = FULL.annotation()
    assert text.startswith("::error file=a.toml,line=3::what, 50%25%0A  where:    a.toml:3%0A")
    assert "\n" not in text
    assert (
        dataclasses.replace(FULL, file="/else/a,b:c.toml")
        .annotation()
        .startswith("::error file=/else/a%2Cb%3Ac.toml,line=3::")
    )
    assert Finding("what").annotation() == "::error::what"


def test_an_error_of_many_findings_tells_them_all() -> None:
    error = SettingsError.from_findings([Finding("one", fix="a"), Finding("two", fix="b")])
    assert str(error) == "one\n  fix:      a\ntwo\n  fix:      b"
    assert isinstance(error, ValueError)
