"""Completion in a real bash: commands, flags, the words of a setting; and nothing of it at start-up."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from ptycho_exec.cli.commands import main
from ptycho_exec.cli.completion import SHELLS
from ptycho_exec.fields.spec import field_specs
from ptycho_exec.settings import ExecutionSettings

pytest.importorskip("shtab", reason="it is part of the extras completion and dev")
needs_bash = pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash here")


@pytest.fixture(scope="module")
def script(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("completion") / "ptycho-exec"
    done = subprocess.run(
        [sys.executable, "-m", "ptycho_exec", "completion", "bash"],
        capture_output=True,
        text=True,
        check=True,
    )
    path.write_text(done.stdout)
    return path


def completed(script: Path, *words: str, cwd: Path | None = None) -> set[str]:
    """Return what bash offers for the last of `words`."""
    code = (
        f'source {script}; COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); '
        '_shtab_ptycho_exec "$1" "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD-1]}"; '
        r'printf "%s\n" "${COMPREPLY[@]}"'
    )
    done = subprocess.run(
        ["bash", "--norc", "-c", code, "bash", "ptycho-exec", *words], capture_output=True, text=True, cwd=cwd
    )
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


@needs_bash
def test_commands_are_completed(script: Path) -> None:
    assert completed(script, "") >= {"show", "explain", "check", "completion"}
    assert completed(script, "ch") == {"check"}


@needs_bash
def test_flags_are_completed(script: Path) -> None:
    assert completed(script, "show", "--batch") == {"--batch-size"}
    assert {spec.flag for spec in field_specs().values()} <= completed(script, "check", "--")


@needs_bash
@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["show", "--accelerator", ""], {"auto", "cpu", "gpu", "cuda", "mps"}),
        (["show", "--precision", "bf"], {"bf16-mixed", "bf16-true"}),
        (["show", "--format", ""], {"toml", "env", "flags", "json"}),
        (["check", "--annotations", "git"], {"github", "gitlab"}),
        (["explain", "batch"], {"batch_size"}),
        (["completion", "z"], {"zsh"}),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_words_are_completed(script: Path, words: list[str], expected: set[str]) -> None:
    assert completed(script, *words) == expected


@needs_bash
def test_files_are_completed_where_a_file_is_asked_for(script: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text("")
    assert completed(script, "show", "--settings", "mi", cwd=tmp_path) == {"mine.toml"}


@pytest.mark.parametrize("shell", SHELLS)
def test_every_shell_gets_a_script(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", shell]) == 0
    assert "batch" in capsys.readouterr().out
    assert set(ExecutionSettings.model_fields) == set(field_specs())


def test_both_programs_have_it(tmp_path: Path) -> None:
    code = "import sys; from ptycho_torch.cli import main; sys.exit(main(['completion', 'bash']))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert "--batch-size" in done.stdout
    assert "inspect" in done.stdout


def test_without_the_extra_it_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "shtab", None)
    assert main(["completion", "bash"]) == 1
    assert "pip install 'ptycho-exec[completion]'" in capsys.readouterr().err


def test_no_other_command_loads_it(tmp_path: Path) -> None:
    code = (
        "import sys; from ptycho_exec.cli.commands import main; main(['show']); print('shtab' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert done.stdout.split()[-1] == "False"
