"""Errors: what a finding shows, what it hides, and how many findings travel in one error."""

from __future__ import annotations

import ast
import dataclasses
import json
import pickle
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from ptycho_exec.errors import CODES, DataError, DriftError, Finding, SettingsError, UserError, redact
from ptycho_exec.settings import ExecutionSettings
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


FORMS = [
    "https://user:{}@host/x",
    "https://user:pa {}@host/x",
    "https://user:{} ss@host/x",
    "https://user:pa'{}@host",
    "https://user:a@{}@host",
    "https://user:a/{}@host:5000/x",
    "https://{}@host",
    "mlflow+https://{}:x-oauth@host",
    "postgresql+psycopg2://me:{}@db/mlflow",
    "//me:{}@host",
    "me:{}@host:5000",
    "see https://host:5000/a and https://me:{}@host",
    "https://h/?code={}",
    "https://h/cb?n=1&code={}&state=2",
    "https://h/?access_token={}&n=1",
    "https://h/?X-Amz-Signature={}",
    "https://h/?X-Amz-Credential={}",
    "https://h/?AWSAccessKeyId={}",
    "https://h/#id_token={}",
    "https://h/?jwt={}",
    "https://h/?pass={}",
    "https://h/token/{}1/x",
    "https://h/webhooks/{}1",
    "Bearer {}",
    "bearer {}",
    "Authorization: Bearer {}",
    "authorization: basic {}",
    "{{'Authorization': 'Bearer {}'}}",
    "WANDB_API_KEY={}",
    "export MLFLOW_TRACKING_PASSWORD={}",
    "wandb_api_key: {}",
    '"api_key": "{}"',
    "password = '{}'",
    "aws_secret_access_key = {}",
    "client-secret: {}",
    "--token {}",
    "--wandb-api-key {}",
    "--password={}",
]
SECRETS = st.text("abcdefghijkmnopqrstuvwxyzABCDEFGHJKLMNPQRSTUVWXYZ23456789", min_size=8, max_size=40)


@given(st.sampled_from(FORMS), SECRETS)
@example("https://h/token/{}1/x", "aaaaaaaa")
def test_a_secret_is_hidden_in_every_usual_form(form: str, secret: str) -> None:
    secret = f"Q{secret}"  # so that it is no part of the form itself
    shown = redact(form.format(secret))
    assert secret not in shown
    assert "***" in shown
    assert redact(shown) == shown
    assert secret not in Finding(form.format(secret), form.format(secret)).render()


KEYS = [
    "AKIAIOSFODNN7EXAMPLE",
    "ghp_0123456789abcdefghijABCDEFGHIJ012345",
    "github_pat_11ABCDEFG0123456789_abcdefghijkl",
    "glpat-abcdefghij0123456789",
    "xoxb-123456789012-abcdefABCDEF",
    "sk-proj-abcdefghijklmnop0123",
    "hf_abcdefghijklmnopqrstuvwxyz012345",
    "dapi0123456789abcdef0123456789abcdef",
    "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.abc-DEF_123",
    "0123456789abcdef0123456789abcdef01234567",
]


@pytest.mark.parametrize("key", KEYS)
def test_a_key_is_known_by_its_form(key: str) -> None:
    for text in ("{}", "run {} failed", "experiment_name = '{}' is not allowed", "({})"):
        assert redact(text.format(key)) == text.format("***")


def test_a_token_in_a_path_is_hidden() -> None:
    assert redact("https://h/hooks/a1B2c3D4e5F6g7H8/x") == "https://h/hooks/***/x"
    assert redact("https://h/api/Zx8kQ1mP0aRt5wYu3Bn/mlflow?n=1") == "https://h/api/***/mlflow?n=1"


HARMLESS = [
    "/data/scans/2026-11-25T10:30:00/run.npz",
    "C:\\Users\\me\\mlruns",
    "file:///C:/Users/me/mlruns",
    "00:01:30:00",
    "at 10:30@lab",
    "localhost:5000",
    "http://localhost:5000/api/2.0/mlflow",
    "http://127.0.0.1:8080",
    "http://host:5000 or write to me@example.org",
    "me@example.org",
    "mailto:me@example.org",
    "https://example.org: ask me@example.org",
    "git@github.com:user/repo.git",
    "image python:3.11@sha256:abcdef",
    "http://h/#/experiments/0/runs/0123456789abcdef0123456789abcdef",
    "https://h/runs/550e8400-e29b-41d4-a716-446655440000",
    "https://h/experiments/SiemensStar2024LongScan12/x",
    "https://h/user/repo/commit/0123456789abcdef0123456789abcdef01234567",
    "commit 0123456789abcdef0123456789abcdef01234567",
    "sha256 " + "0123456789abcdef" * 4,
    "exit code=3",
    "unknown key 'bach_size'",
    "precision=16-mixed: a CPU has no fp16 autocast",
    "basic settings",
    "ptycho_exec.toml:3",
    "a_long_name_of_an_experiment_2026_11_25_with_many_parts",
    "batch_size=8, devices=[0, 1]",
    "the token is missing",
    "val_loss",
]


@pytest.mark.parametrize("text", HARMLESS)
def test_what_is_no_secret_stays(text: str) -> None:
    assert redact(text) == text


@pytest.mark.parametrize("value", [None, 3, 0.5, True, (0, 1)])
def test_redaction_leaves_other_values_alone(value: object) -> None:
    assert redact(value) is value


ROOT = Path(__file__).parents[2]
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


def test_a_finding_in_the_shape_of_pydantic() -> None:
    class Plain(BaseModel):
        seed: int

    with pytest.raises(ValidationError) as theirs:
        Plain(seed="x")  # type: ignore[arg-type]
    with pytest.raises(SettingsError) as ours:
        ExecutionSettings.from_values({"seed": "x", "bach_size": 8})
    unknown, bad = ours.value.errors()
    assert set(bad) == set(theirs.value.errors(include_url=False)[0]) | {"ctx"}
    assert (bad["type"], bad["loc"], bad["input"]) == ("bad-value", ("seed",), "'x'")
    assert bad["msg"] == "seed = 'x' is not allowed"
    assert bad["ctx"]["expected"] == "an integer from 0 to 4294967295"
    assert (unknown["type"], unknown["loc"], unknown["input"]) == ("unknown-name", (), "bach_size")
    json.dumps(ours.value.errors())


def test_the_shape_of_pydantic_hides_credentials() -> None:
    with pytest.raises(SettingsError) as error:
        ExecutionSettings.from_values({"seed": "https://u:s3cr3t@h", "https://v:s3cr3t@h": 1})
    assert "s3cr3t" not in repr(error.value.errors())


def test_a_gitlab_entry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CI_PROJECT_DIR", "/work")
    entry = FULL.code_quality()
    assert entry["location"] == {"path": "a.toml", "lines": {"begin": 3}}
    assert entry["fingerprint"] == dataclasses.replace(FULL, line=9).code_quality()["fingerprint"]
    assert entry["fingerprint"] != dataclasses.replace(FULL, what="other").code_quality()["fingerprint"]
    monkeypatch.setenv("CI_CONFIG_PATH", "ci/jobs.yml")
    assert Finding("x", code="bad-value").code_quality()["location"]["path"] == "ci/jobs.yml"


# --- codes ----------------------------------------------------------------------------------------------


def calls() -> Iterator[tuple[str, ast.AST]]:
    """Yield every node of both packages with its place."""
    for package in ("ptycho_exec", "ptycho_torch"):
        for path in sorted((ROOT / package).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text("utf-8"))):
                yield f"{path.name}:{getattr(node, 'lineno', 0)}", node


def called(node: ast.AST) -> str:
    function = node.func if isinstance(node, ast.Call) else None
    return getattr(function, "id", getattr(function, "attr", ""))


def texts(node: ast.AST | None) -> set[str]:
    """Return the strings that an expression can be."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return {node.value}
    if isinstance(node, ast.IfExp):
        return texts(node.body) | texts(node.orelse)
    return set()


def used_codes() -> Iterator[tuple[str, str]]:
    """Yield each code that the source names, with its place."""
    for place, node in calls():
        found: set[str] = set()
        if isinstance(node, ast.Call):
            found = {text for word in node.keywords if word.arg == "code" for text in texts(word.value)}
            if called(node) in ("note", "ignore", "unsupported") and len(node.args) >= 3:
                found |= texts(node.args[0])
            if called(node) == "refuse_launch":
                found |= texts(node.args[0])
            if called(node) == "finding" and len(node.args) >= 5:
                found |= texts(node.args[4])
        elif isinstance(node, ast.FunctionDef):
            names = node.args.args[len(node.args.args) - len(node.args.defaults) :]
            pairs = zip(names, node.args.defaults, strict=True)
            found = {text for name, value in pairs if name.arg == "code" for text in texts(value)}
        yield from ((place, text) for text in found if text)


def test_every_finding_in_the_source_has_a_code() -> None:
    bare = [
        place
        for place, node in calls()
        if called(node) == "Finding"
        and isinstance(node, ast.Call)
        and not any(word.arg in ("code", None) for word in node.keywords)
    ]
    assert bare == []


def test_every_code_in_the_source_is_in_the_table_and_is_used() -> None:
    used = list(used_codes())
    assert len(used) > 40
    assert [f"{place}: {code}" for place, code in used if code not in CODES] == []
    own = {kind.code for kind in (UserError, SettingsError, DataError, DriftError)}
    assert {code for _, code in used} | own | {"metric-not-logged"} >= set(CODES) - {
        "renamed",
        "not-an-assignment",
    }


def test_errors_without_a_code_have_that_of_their_kind() -> None:
    for kind in (UserError, SettingsError, DataError, DriftError):
        (finding,) = kind("x").findings
        assert finding.code in CODES
        assert kind("x", code="conflict", field="seed").findings[0].code == "conflict"


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


def test_the_commit_of_a_record_stays_and_a_key_does_not() -> None:
    hexadecimal = "0123456789abcdef0123456789abcdef01234567"
    shown = redact({"git": {"commit": hexadecimal, "branch": "main"}, "note": hexadecimal})
    assert shown == {"git": {"commit": hexadecimal, "branch": "main"}, "note": "***"}
