"""macOS and Windows, as far as Linux can tell: what they lack is taken away, and everything still runs."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = sorted(path for name in ("exec", "torch") for path in ROOT.glob(f"ptycho_{name}/**/*.py"))
MODULES = ("fcntl", "resource", "pwd", "grp", "termios", "tty", "pty", "crypt", "syslog", "posix")
"""Of the standard library; Windows has none of them."""
LACKING = {
    "os": (
        *("fork", "forkpty", "killpg", "getpgid", "setsid", "getuid", "geteuid", "getgid", "nice", "mkfifo"),
        *("sched_getaffinity", "sched_setaffinity", "sysconf", "statvfs", "pread", "preadv", "readv"),
        *(
            "posix_fadvise",
            "O_DIRECTORY",
            "O_NOFOLLOW",
            "O_CLOEXEC",
            "fchmod",
            "chown",
            "getloadavg",
            "uname",
        ),
    ),
    "signal": (
        "SIGKILL",
        "SIGUSR1",
        "SIGUSR2",
        "SIGHUP",
        "SIGALRM",
        "SIGCHLD",
        "alarm",
        "setitimer",
        "pause",
    ),
    "select": ("poll", "epoll"),
    "time": ("tzset",),
}
"""What Windows has not; some of it macOS has not either."""
LEFT = {
    "os.statvfs",
    "os.uname",
    "os.getuid",
    "os.geteuid",
    "select.poll",
    "signal.SIGCHLD",
    "signal.SIGKILL",
}
"""Not taken away here: on this system the standard library or torch needs it."""
WITHOUT = f"""
import builtins, multiprocessing, os, select, signal, sys, time
import h5py, lightning.pytorch, matplotlib.pyplot, rich.progress, scipy, skimage, torch.utils.data
for module, names in {LACKING!r}.items():
    for name in names:
        if f"{{module}}.{{name}}" not in {LEFT!r} and hasattr(sys.modules[module], name):
            delattr(sys.modules[module], name)
imported = builtins.__import__

def import_as_there(name, globals=None, *more, **named):
    if name in {MODULES!r} and (globals or {{}}).get("__name__", "").startswith("ptycho_"):
        raise ModuleNotFoundError(name)
    return imported(name, globals, *more, **named)

builtins.__import__ = import_as_there
multiprocessing.set_start_method("spawn")
"""
IMPORT_ALL = """
import importlib, pkgutil, ptycho_exec, ptycho_torch
for package in (ptycho_exec, ptycho_torch):
    for row in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        if not row.name.endswith("__main__"):
            importlib.import_module(row.name)
"""
USE_ALL = """
from ptycho_exec.__main__ import main as settings
from ptycho_torch.__main__ import main as science
scan = "Gr\\u00f6\\u00dfe \\u03b1/my scan.npz"
for main, words in (
    (settings, "show"),
    (settings, "check"),
    (science, "simulate --out SCAN --n 32 --patterns 60"),
    (science, "inspect SCAN"),
    (science, "convert SCAN pair --to ptychodus"),
    (science, "train SCAN --out run --epochs 1 --num-workers 1 --enable-progress-bar=true"),
    (science, "train SCAN --out run --epochs 1 --num-workers 1 --enable-progress-bar=true --resume auto"),
    (science, "infer run pair --out out --refine 1"),
):
    sys.argv = ["program", *(word.replace("SCAN", scan) for word in words.split())]
    code = main()
    assert code == 0, (words, code)
from ptycho_exec.machine.children import run_limited
assert run_limited([sys.executable, "-c", "print(5)"], limit_s=100).output.strip() == "5"
from ptycho_torch.data.storage import patterns
patterns.MEMORY_BUDGET_BYTES = 0
from ptycho_torch.data.read import read_scan
assert read_scan("pair").patterns[3:5].any()
"""


def assert_it_runs(code: str, place: Path) -> None:
    environ = {**os.environ, "PYTHONWARNINGS": "ignore", "PYTHONUTF8": "1"}
    argv = [sys.executable, "-c", code]
    done = subprocess.run(argv, cwd=place, env=environ, capture_output=True, encoding="utf-8", timeout=400)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
def test_every_module_is_imported_without_what_other_systems_lack(tmp_path: Path) -> None:
    assert_it_runs(WITHOUT + IMPORT_ALL, tmp_path)


@pytest.mark.slow
def test_commands_run_without_what_other_systems_lack_in_a_place_with_spaces_and_letters(
    tmp_path: Path,
) -> None:
    place = tmp_path / "my runs \u00fc"
    (place / "Gr\u00f6\u00dfe \u03b1").mkdir(parents=True)
    assert_it_runs(WITHOUT + USE_ALL, place)


def names_that_systems_lack(node: ast.AST) -> Iterator[str]:
    for part in ast.walk(node):
        if isinstance(part, ast.Attribute) and isinstance(part.value, ast.Name):
            module, name = part.value.id, part.attr
            if name in LACKING.get(module, ()):
                yield f"{module}.{name}"


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_what_systems_lack_is_asked_for_first(path: Path) -> None:
    """Each use is in a function that looks whether it is there, or catches that it is not."""
    tree = ast.parse(path.read_text("utf-8"))
    for statement in ast.walk(tree):
        if isinstance(statement, (ast.FunctionDef, ast.AsyncFunctionDef)):
            text = ast.unparse(statement)
            for name in names_that_systems_lack(statement):
                asks = f"hasattr({name.replace('.', ', ')!s}".replace(", ", ", '") + "')"
                kills = name == "signal.SIGKILL" and "hasattr(os, 'killpg')" in text
                assert asks in text or kills or "AttributeError" in text, (
                    f"{path.name}, {statement.name}: {name}"
                )


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_text_files_have_an_encoding(path: Path) -> None:
    """Windows has another default than UTF-8."""
    for call in ast.walk(ast.parse(path.read_text("utf-8"))):
        if not (isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute)):
            continue
        given = {word.arg for word in call.keywords}
        name, where = call.func.attr, f"{path.name}:{call.lineno}"
        if name in ("read_text", "write_text"):
            assert "encoding" in given or len(call.args) == (name == "write_text") + 1, where
        modes = [arg.value for arg in call.args if isinstance(arg, ast.Constant)]
        if name == "open" and modes and "force_zip64" not in given and set(str(modes[-1])) <= set("rwax+t"):
            assert "encoding" in given, where
