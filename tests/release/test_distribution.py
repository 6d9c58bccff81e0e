"""What is released holds what it must and nothing else, and works where no checkout is."""

from __future__ import annotations

import re
import sys
import tarfile
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest
import yaml

from ptycho_exec.version import __version__
from tests.release.environments import ROOT, SMALL_DEMO, Environment, build

pytest.importorskip("hatchling", reason="hatchling is needed to build the package")
BESIDE_CODE = {
    "ptycho_exec/py.typed",
    "ptycho_torch/py.typed",
    *(f"ptycho_exec/profiles/{path.name}" for path in (ROOT / "ptycho_exec/profiles").glob("*.toml")),
    *(
        path.relative_to(ROOT).as_posix()
        for kind in ("jinja", "css", "js")
        for path in ROOT.glob(f"ptycho_torch/**/*.{kind}")
    ),
}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return build(tmp_path_factory.mktemp("dist"))


@pytest.mark.slow
def test_the_wheel_holds_the_packages_and_what_they_read(built: tuple[Path, Path]) -> None:
    with zipfile.ZipFile(built[1]) as wheel:
        names = set(wheel.namelist())
        (metadata,) = (name for name in names if name.endswith(".dist-info/METADATA"))
        head = Parser().parsestr(wheel.read(metadata).decode("utf-8"))
    info = metadata.rpartition("/")[0]
    inside = {name for name in names if not name.startswith(info)}
    assert {name for name in inside if not name.endswith(".py")} == BESIDE_CODE
    assert {name for name in inside if name.endswith(".py")} == {
        path.relative_to(ROOT).as_posix()
        for name in ("exec", "torch")
        for path in ROOT.glob(f"ptycho_{name}/**/*.py")
    }
    assert f"{info}/licenses/LICENSE" in names
    assert (head["Version"], head["License-Expression"]) == (__version__, "BSD-3-Clause")
    assert head["Requires-Python"] == ">=3.11"


@pytest.mark.slow
def test_the_sdist_holds_what_builds_tests_and_explains_it(built: tuple[Path, Path]) -> None:
    with tarfile.open(built[0]) as sdist:
        names = {name.partition("/")[2] for name in sdist.getnames()}
    assert {"LICENSE", "CITATION.cff", "CHANGELOG.md", "SECURITY.md", "constraints.txt", "Makefile"} <= names
    assert {"specs/execution_settings.schema.json", "tests/conftest.py", "docs/quickstart.md"} <= names
    assert names >= BESIDE_CODE
    left = re.compile(
        r"(^|/)(\.venv|__pycache__|results|runs|dist|\.[a-z]+_cache)(/|$)|\.(pyc|npz|h5|png|ckpt)$"
    )
    assert [name for name in names if left.search(name)] == []


@pytest.mark.slow
def test_it_works_installed_where_no_checkout_is(built: tuple[Path, Path], tmp_path: Path) -> None:
    place = Environment(tmp_path / "environment", tmp_path / "work")
    place.install("--no-deps", built[1])
    place.see(*(folder for folder in sys.path if folder.endswith("site-packages")))
    for package in ("ptycho_exec", "ptycho_torch"):
        home = place.run("python", "-c", f"import {package}; print({package}.__file__)")
        assert Path(home.strip()).is_relative_to(place.folder)
    assert place.run("ptycho-exec", "--version") == f"ptycho-exec {__version__}\n"
    assert "batch_size" in place.run("ptycho-exec", "show", "--profile", "ci")
    place.run("ptycho-torch", *SMALL_DEMO)
    assert (place.work / "demo_run" / "refine" / "report.html").is_file()


def test_who_cites_it_names_this_version() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))
    assert (citation["version"], citation["license"]) == (__version__, "BSD-3-Clause")


def test_workflows_call_verbs_that_exist() -> None:
    verbs = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE))
    lines = (ROOT / ".ci/run").read_text("utf-8").splitlines()
    for path in (ROOT / ".github/workflows").glob("*.yml"):
        jobs = yaml.safe_load(path.read_text("utf-8"))["jobs"].values()
        lines += [step["run"] for job in jobs for step in job["steps"] if "run" in step]
    called = {verb for line in lines for verb in re.findall(r"^(?:foreign )?make ([a-z-]+)", line)}
    assert {"test", "test-all", "release-check"} <= called <= verbs
    assert ".ci/run" in lines


def test_make_demo_can_be_said_twice() -> None:
    """The command itself takes the next free folder."""
    assert re.search(
        r"^demo: .*\n\t\$\(BIN\)/ptycho-torch demo$", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE
    )


def test_the_changelog_has_a_place_for_what_comes_and_this_version() -> None:
    sections = re.findall(r"^## \[(.+?)\]", (ROOT / "CHANGELOG.md").read_text("utf-8"), re.MULTILINE)
    assert sections[0] in ("Unreleased", __version__)
    assert len(sections) == len(set(sections))
