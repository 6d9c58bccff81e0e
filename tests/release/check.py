"""`make release-check`: the wheel in `dist/` with all that it needs, in a new environment, at work there."""

from __future__ import annotations

import sys
import tempfile
import zipfile
from email.parser import Parser
from pathlib import Path

from tests.release.environments import ROOT, SMALL_DEMO, Environment, run

CONSTRAINTS = ROOT / "constraints.txt"


def extras_of(wheel: Path) -> list[str]:
    """Return the extras that a wheel offers."""
    with zipfile.ZipFile(wheel) as archive:
        name = next(name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        return Parser().parsestr(archive.read(name).decode("utf-8")).get_all("Provides-Extra", [])


def size_mib(folder: Path) -> float:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 2**20


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
    return 0


if __name__ == "__main__":
    sys.exit(main())
