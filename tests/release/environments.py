"""Building what is released, and environments that hold it instead of the checkout."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[2]
SMALL_DEMO = ("demo", "--n=32", "--patterns=60", "--step-px=4", "--probe-radius-px=8", "--epochs=1")
"""A demo of seconds; it learns nothing."""


def run(argv: Sequence[str | Path], cwd: Path = ROOT, limit_s: float = 600, given: str = "") -> str:
    """Run a program outside the checkout's reach, `given` on its standard input; return what it printed.

    Raises:
        RuntimeError: it failed; with the end of its output.
    """
    hidden = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")
    environ = {name: value for name, value in os.environ.items() if name not in hidden}
    words = list(map(str, argv))
    done = subprocess.run(
        words,
        cwd=cwd,
        env=environ,
        input=given,
        capture_output=True,
        encoding="utf-8",
        errors="replace",
        timeout=limit_s,
    )
    if done.returncode:
        end = "\n".join((done.stdout + done.stderr).splitlines()[-30:])
        raise RuntimeError(f"{' '.join(words)} ended with {done.returncode}:\n{end}")
    return done.stdout


def build(folder: Path) -> tuple[Path, Path]:
    """Build into a folder; return sdist and wheel."""
    run([sys.executable, "-m", "hatchling", "build", "--directory", folder])
    (sdist,), (wheel,) = folder.glob("*.tar.gz"), folder.glob("*.whl")
    return sdist, wheel


class Environment:
    """A virtual environment; its programs run in a folder that is not the checkout."""

    def __init__(self, folder: Path, work: Path, python: str = sys.executable) -> None:
        self.folder, self.work = folder, work
        work.mkdir(parents=True, exist_ok=True)
        run([python, "-m", "venv", "--without-pip", folder])
        self.programs = folder / ("Scripts" if os.name == "nt" else "bin")
        self.python = self.programs / "python"

    @property
    def packages(self) -> Path:
        return Path(
            self.run("python", "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip()
        )

    def install(self, *words: str | Path) -> None:
        """Install with the pip of this interpreter."""
        run(
            [sys.executable, "-m", "pip", "--python", self.python, "install", "--quiet", *words], limit_s=1800
        )

    def see(self, *folders: str) -> None:
        """Let it import from other folders of packages, without their `.pth` files: no editable checkout."""
        (self.packages / "seen.pth").write_text("\n".join(folders), "utf-8")

    def run(self, program: str, *words: str | Path, limit_s: float = 600, given: str = "") -> str:
        return run([self.programs / program, *words], cwd=self.work, limit_s=limit_s, given=given)
