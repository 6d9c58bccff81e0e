"""`make release-check`: the wheel in `dist/` with all that it needs, in a new environment, at work there."""

from __future__ import annotations

import json
import re
import sys
import tempfile
import zipfile
from email.parser import Parser
from pathlib import Path

from tests.release.environments import ROOT, SMALL_DEMO, Environment, run

CONSTRAINTS = ROOT / "constraints.txt"
TUTORIAL = ROOT / "docs/tutorials/first-reconstruction.md"


def extras_of(wheel: Path) -> list[str]:
    """Return the extras that a wheel offers."""
    with zipfile.ZipFile(wheel) as archive:
        name = next(name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        return Parser().parsestr(archive.read(name).decode("utf-8")).get_all("Provides-Extra", [])


def size_mib(folder: Path) -> float:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 2**20


def cells_of(page: Path) -> list[str]:
    """Return the code cells of a tutorial."""
    cell = r"^```\{code-cell\} ipython3\n(?:---\n.*?^---\n)?(.*?)^```$"
    return re.findall(cell, page.read_text("utf-8"), re.DOTALL | re.MULTILINE)


KERNEL = """
import json, sys
from jupyter_client.manager import run_kernel
with run_kernel() as client:
    for cell in json.load(sys.stdin):
        content = client.execute_interactive(cell, timeout=300)["content"]
        if content["status"] != "ok":
            sys.exit("\\n".join([cell, *content["traceback"]]))
"""
"""Runs cells as a notebook does, with nothing but what the extra notebook installs."""


def main() -> int:
    """Check the wheel, print what is found, and fail with the output of what fails."""
    (wheel,) = (ROOT / "dist").glob("*.whl")
    with tempfile.TemporaryDirectory(prefix="release-check-") as name:
        place = Environment(Path(name) / "environment", Path(name) / "work")
        place.install("--constraint", CONSTRAINTS, wheel)
        pip = [sys.executable, "-m", "pip", "--python", place.python]
        print(run([*pip, "check"]).strip())
        whole, torch = size_mib(place.packages), size_mib(place.packages / "torch")
        print(f"install size: {whole:.0f} MiB, {torch:.0f} of it torch")
        for extra in extras_of(wheel):
            wanted = f"{wheel}[{extra}]"
            run([*pip, "install", "--dry-run", "--quiet", "--constraint", CONSTRAINTS, wanted], limit_s=1800)
            print(f"extra {extra}: resolves")
        place.run("ptycho-exec", "check")
        place.run("ptycho-torch", *SMALL_DEMO)
        print(f"demo: {len(list((place.work / 'demo_run').rglob('*')))} files")
        place.install("--constraint", CONSTRAINTS, f"{wheel}[notebook]")
        cells = cells_of(TUTORIAL)
        place.run("python", "-c", KERNEL, given=json.dumps(cells))
        print(f"notebook: {len(cells)} cells of {TUTORIAL.relative_to(ROOT)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
