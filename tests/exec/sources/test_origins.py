"""Origins: what they say, what they shadow, what they hide."""

from __future__ import annotations

import dataclasses
import json
import pickle

import pytest

from ptycho_exec.settings import ExecutionSettings
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
    shown = repr(
        Resolution(
            ExecutionSettings, {"tracking_uri": "t0ken"}, {}, (SearchedFile(Kind.DOTENV, "/.env", True),)
        )
    )
    assert shown == "Resolution(tracking_uri, 0 findings)"
    assert Layer().entries == {}
