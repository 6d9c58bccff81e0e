"""Errors: what a finding shows, what it hides, and how many findings travel in one error."""

from __future__ import annotations

import dataclasses
import pickle

import pytest

from ptycho_exec.errors import Finding, SettingsError, redact
from tests.exec.makers import make


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


def test_an_error_survives_pickling() -> None:
    with pytest.raises(SettingsError) as caught:
        make(bach_size=1, seeed=2)
    copied = pickle.loads(pickle.dumps(caught.value))
    assert (type(copied), copied.findings, str(copied)) == (
        SettingsError,
        caught.value.findings,
        str(caught.value),
    )


def test_credentials_in_any_part_of_a_finding_are_hidden_and_bytes_become_escapes() -> None:
    address = "https://me:s3cr3t@host/"
    finding = Finding(address, address, address, address, address)
    assert finding.render().count("https://***@host/") == 5
    assert "s3cr3t" not in f"{finding!r}{finding.to_json()}"
    assert Finding("PTYCHO_EXEC_SEED = \udcff").what == "PTYCHO_EXEC_SEED = \\udcff"
