"""What is said about scans with one trouble each, and what the remedy is worth.

Simulated scans, each with one random trouble of a random strength, and scans without any. Stage 1 reads them:
was the trouble named by a finding with a code that fits it, and were good scans left alone? Stage 2
(`--reconstruct`) reconstructs each as it is, with a fixed probe; a cause of the verdict may name the trouble,
too. It follows the options that are named and reconstructs once more. Both objects are compared with the true
one: an agreement below 0.9 without a word is what must not happen.

    python benchmarks/troubles.py [--scans 200] [--good 50] [--reconstruct] [--only KIND ...]
"""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import common
import numpy as np
from numpy.typing import NDArray

from ptycho_exec.errors import DataError, Finding
from ptycho_torch.config import DataConfig
from ptycho_torch.data.read import read_scan
from ptycho_torch.data.scan import ScanData
from ptycho_torch.simulate import simulate_scan
from ptycho_torch.workflows.components import InferenceResult

Arrays = dict[str, Any]
Rng = np.random.Generator
PIXEL_M = 20e-9
WRONG = 0.9
RESTORED = 0.99


@dataclass(frozen=True)
class Trouble:
    """A kind of trouble.

    Attributes:
        make: changes the arrays of a good scan, which it may alter in place.
        codes: of the findings that name it; one is enough.
        restores: whether following the remedy gives the object back.
        cause: of a verdict that names it, if there is one.
    """

    make: Callable[[Arrays, Rng], None]
    codes: tuple[str, ...]
    restores: bool = True
    cause: str = ""


def _background(arrays: Arrays, rng: Rng) -> None:
    level = rng.uniform(2, 6)
    arrays["patterns"] = arrays["patterns"] + rng.poisson(level, arrays["patterns"].shape).astype(np.uint32)


def _units_of_detector(arrays: Arrays, rng: Rng) -> None:
    arrays["patterns"] = arrays["patterns"] * int(rng.integers(5, 60)) + int(rng.choice([0, 100]))


def _noisy_units(arrays: Arrays, rng: Rng) -> None:
    """Detector units with a pedestal and readout noise, which is subtracted: some values are negative."""
    gain = rng.uniform(20, 60)
    noise = rng.normal(0, 0.08 * gain, arrays["patterns"].shape)
    arrays["patterns"] = np.round(arrays["patterns"] * gain + noise).astype(np.int32)


def _gap(value: float) -> Callable[[Arrays, Rng], None]:
    def make(arrays: Arrays, rng: Rng) -> None:
        side = arrays["patterns"].shape[1]
        rows, columns = rng.integers(side // 4, 3 * side // 4, 2)
        filled = arrays["patterns"].astype(np.float32 if np.isnan(value) else np.uint32)
        filled[:, rows : rows + max(2, side // 16)] = value
        filled[:, :, columns : columns + 2] = value
        arrays["patterns"] = filled

    return make


def _beam_stop(arrays: Arrays, rng: Rng) -> None:
    y, x = _centered(arrays["patterns"].shape[1])
    arrays["patterns"][:, np.hypot(y, x) < rng.uniform(2, 5)] = 0


def _hot(arrays: Arrays, rng: Rng) -> None:
    side = arrays["patterns"].shape[1]
    places = rng.choice(side * side, int(rng.integers(3, 30)), replace=False)
    arrays["patterns"].reshape(-1, side * side)[:, places] = rng.integers(2000, 60000, len(places))


def _off_center(arrays: Arrays, rng: Rng) -> None:
    side = arrays["patterns"].shape[1]
    angle, distance = rng.uniform(0, 2 * np.pi), rng.uniform(0.08, 0.2) * side
    by = np.round(distance * np.array([np.sin(angle), np.cos(angle)])).astype(int)
    arrays["patterns"] = np.roll(arrays["patterns"], tuple(by), axis=(1, 2))


def _corner(arrays: Arrays, _: Rng) -> None:
    arrays["patterns"] = np.fft.ifftshift(arrays["patterns"], axes=(1, 2))


def _unit(size_m: float) -> Callable[[Arrays, Rng], None]:
    def make(arrays: Arrays, _: Rng) -> None:
        arrays["positions"] *= PIXEL_M / size_m
        arrays["object"] = None

    return make


def _far(arrays: Arrays, rng: Rng) -> None:
    arrays["positions"][rng.integers(len(arrays["positions"]))] = rng.uniform(2000, 5000, 2)
    arrays["object"] = None


def _no_overlap(arrays: Arrays, rng: Rng) -> None:
    chosen = np.repeat(np.arange(0, len(arrays["positions"]), 2), 2)
    arrays["positions"] = arrays["positions"][chosen] * rng.uniform(6, 9)
    arrays["patterns"], arrays["object"] = arrays["patterns"][chosen], None


def _dark(arrays: Arrays, rng: Rng) -> None:
    chosen = rng.choice(len(arrays["patterns"]), int(rng.integers(3, 15)), replace=False)
    arrays["patterns"][chosen] = rng.poisson(0.01, arrays["patterns"][chosen].shape)


def _half_precision(arrays: Arrays, rng: Rng) -> None:
    with np.errstate(over="ignore"):
        scale = rng.uniform(1e5, 2e5) / max(1.0, float(arrays["patterns"].max()))
        arrays["patterns"] = (arrays["patterns"] * scale).astype(np.float16)


def _single_values(arrays: Arrays, rng: Rng) -> None:
    patterns = arrays["patterns"].astype(np.float32)
    places = rng.choice(patterns.size, int(rng.integers(3, 20)), replace=False)
    patterns.reshape(-1)[places] = rng.choice([np.nan, np.inf, 1e30])
    arrays["patterns"] = patterns


def _broken_frames(arrays: Arrays, rng: Rng) -> None:
    patterns = arrays["patterns"].astype(np.float32)
    patterns[rng.choice(len(patterns), 4, replace=False)] = np.nan
    arrays["patterns"] = patterns


KINDS: dict[str, Trouble] = {
    "background": Trouble(_background, ("background",), cause="background"),
    "detector-units": Trouble(_units_of_detector, ("gain",)),
    "negative": Trouble(_noisy_units, ("bad-data", "gain")),
    "gap-largest": Trouble(_gap(2**32 - 1), ("gaps",)),
    "gap-nan": Trouble(_gap(np.nan), ("gaps",)),
    "gap-zero": Trouble(_gap(0), ("dead-pixels",), cause="mask"),
    "beam-stop": Trouble(_beam_stop, ("dead-pixels",), cause="mask"),
    "hot-pixels": Trouble(_hot, ("hot-pixels", "stuck-pixels"), cause="mask"),
    "off-center": Trouble(_off_center, ("off-center",), cause="center"),
    "corner": Trouble(_corner, ("corner-frequency",)),
    "meters": Trouble(_unit(1.0), ("bad-data",)),
    "millimeters": Trouble(_unit(1e-3), ("bad-data",)),
    "micrometers": Trouble(_unit(1e-6), ("bad-data", "much-overlap")),
    "nanometers": Trouble(_unit(1e-9), ("little-overlap",)),
    "far-position": Trouble(_far, ("far-positions", "bad-data"), cause="positions"),
    "no-overlap": Trouble(_no_overlap, ("little-overlap",), restores=False),
    "dark": Trouble(_dark, ("dark-patterns",)),
    "half-precision": Trouble(_half_precision, ("bad-data", "gaps")),
    "single-values": Trouble(_single_values, ("bad-data",)),
    "broken-frames": Trouble(_broken_frames, ("bad-data",)),
}


def _centered(side: int) -> NDArray[Any]:
    return np.asarray(np.mgrid[:side, :side] - side // 2)


def good_scan(rng: Rng) -> Arrays:
    """Return the arrays of a random scan without trouble; its dose leaves single counts at wide angles."""
    side = int(rng.choice([32, 64], p=[0.6, 0.4]))
    scan = simulate_scan(
        n=side,
        patterns=int(rng.choice([100, 144])),
        photons=float(10 ** rng.uniform(5, 6)),
        object_kind=rng.choice(["dead_leaves", "star_and_leaves"]),
        scan_kind=rng.choice(["raster", "fermat"]),
        probe_curvature_rad=float(rng.choice([-1, 1]) * rng.uniform(3, 8)),
        probe_aberration_rad=float(rng.choice([0, 0.7])),
        contrast=float(rng.choice([0.5, 1.0])),
        seed=int(rng.integers(2**31)),
    )
    return {
        "patterns": np.asarray(scan.patterns).astype(np.uint32),
        "positions": scan.positions_px.copy(),
        "probe": scan.probe,
        "object": scan.object_guess,
        "truth": scan,
    }


@dataclass
class Outcome:
    """What was said about one scan, and what came of it."""

    kind: str
    said: list[Finding] = field(default_factory=list)
    named: bool = False
    agreement: float | None = None
    verdict: str = ""
    """Its line and those of its causes, where it warns."""
    options: dict[str, Any] = field(default_factory=dict)
    """The remedy that was followed."""
    mended: float | None = None
    verdict_mended: str = ""

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON data."""
        said = [{"code": row.code, "what": row.what, "options": dict(row.options)} for row in self.said]
        return {**vars(self), "said": said}


def write(arrays: Arrays, path: Path) -> Path:
    """Write a scan under PtychoPINN's keys, the size of a pixel beside them, without its true object."""
    np.savez(
        path,
        diff3d=arrays["patterns"],
        ycoords=arrays["positions"][:, 0],
        xcoords=arrays["positions"][:, 1],
        probeGuess=arrays["probe"],
        pixel_size_m=PIXEL_M,
        patch_center="half-pixel",
        domain="intensity",
    )
    return path


def findings_of(path: Path, config: DataConfig | None = None) -> tuple[ScanData | None, list[Finding]]:
    """Read a scan; return it, or None where it is refused, and what is said about it, notes apart."""
    try:
        scan = read_scan(path, config)
    except DataError as error:
        return None, list(error.findings)
    return scan, [finding for finding in scan.findings if finding.level != "note"]


def remedy(path: Path, rounds: int = 4) -> tuple[ScanData | None, dict[str, Any]]:
    """Follow what the findings say until nothing new is said; return the scan and the options."""
    options: dict[str, Any] = {}
    for _ in range(rounds):
        scan, said = findings_of(path, DataConfig(**options))
        new = {name: value for row in said for name, value in row.options.items()}
        if all(options.get(name) == value for name, value in new.items()):
            break
        options |= {name: value for name, value in new.items() if name not in options}
    return scan, options


def refined(scan: ScanData, science: Mapping[str, Any]) -> InferenceResult:
    """Reconstruct a scan from a flat object, with its probe as it is."""
    from ptycho_torch.workflows.components import reconstruct

    how = {"start": "flat", "refine": 20, "refine_probe": False, "num_threads": 1, **science}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return reconstruct(None, scan, None, None, {**how, "enable_progress_bar": False})


def agreement(scan: ScanData, result: InferenceResult, truth: ScanData) -> float:
    """Return the correlation of an object and the true one after alignment, 1 where they are the same."""
    from ptycho_torch.evaluation.metrics import evaluate

    assert truth.object_guess is not None
    # Both canvases are whole pixels apart: a position is that of the truth plus the shift of its canvas.
    corner = -np.round(scan.position_shift_px).astype(int)
    height, width = truth.object_guess.shape
    low = np.maximum(corner, 0)
    high = np.minimum(corner + result.object.shape, (height, width))
    here = tuple(slice(*pair) for pair in zip(low - corner, high - corner, strict=True))
    there = tuple(slice(*pair) for pair in zip(low, high, strict=True))
    try:
        found = evaluate(result.object[here], truth.object_guess[there], coverage=result.coverage[here])
    except DataError:  # nothing that could be compared
        return 0.0
    powers = [np.sum(np.abs(image) ** 2) for image in (found.truth, found.reconstruction)]
    return float(np.abs(np.vdot(found.truth, found.reconstruction)) / np.sqrt(powers[0] * powers[1]))


def warning(result: InferenceResult) -> str:
    """Return the lines of a verdict that warns, else nothing."""
    verdict = result.verdict
    return "\n".join(verdict.lines()) if verdict is not None and verdict.warns else ""


def options_of(cause: str, result: InferenceResult) -> dict[str, Any]:
    """Return the option that a verdict names first for a cause, as a science field."""
    causes = result.verdict.causes if result.verdict is not None else ()
    return next((dict(row.options[0]) for row in causes if row.name == cause), {})


def troubled(count: int, good: int, seed: int, only: list[str]) -> Iterator[tuple[str, Arrays]]:
    """Yield kind and arrays: every kind in turn, then scans without trouble."""
    rng = np.random.default_rng(seed)
    names = only or list(KINDS)
    for number in range(count):
        arrays = good_scan(rng)
        kind = names[number % len(names)]
        KINDS[kind].make(arrays, rng)
        yield kind, arrays
    for _ in range(good):
        yield "none", good_scan(rng)


def judge(kind: str, arrays: Arrays, folder: Path, *, reconstruct: bool) -> Outcome:
    """Return what is said about a scan, and with `reconstruct` what the remedy is worth."""
    path = write(arrays, folder / "scan.npz")
    scan, said = findings_of(path)
    codes = KINDS[kind].codes if kind in KINDS else ()
    outcome = Outcome(kind, said, named=any(row.code in codes for row in said))
    if not reconstruct:
        return outcome
    trouble, more = KINDS.get(kind), {}
    if scan is not None:
        found = refined(scan, {})
        outcome.agreement, outcome.verdict = agreement(scan, found, arrays["truth"]), warning(found)
        if trouble is not None and not outcome.named:
            more = options_of(trouble.cause, found)
            outcome.named = bool(more)
    if trouble is not None and trouble.restores:
        mended, options = remedy(path)
        outcome.options = options | more
        if mended is not None and outcome.options:
            found = refined(mended, {name: value for name, value in more.items() if name not in options})
            outcome.mended, outcome.verdict_mended = (
                agreement(mended, found, arrays["truth"]),
                warning(found),
            )
    return outcome


def table(outcomes: list[Outcome]) -> Iterator[tuple[object, ...]]:
    """Yield a row for each kind."""
    for kind in dict.fromkeys(row.kind for row in outcomes):
        rows = [row for row in outcomes if row.kind == kind]
        silent = [row for row in rows if row.agreement is not None and row.agreement < WRONG]
        silent = [row for row in silent if not (row.said or row.verdict)]
        mended = [row.mended for row in rows if row.mended is not None]
        yield (
            kind,
            len(rows),
            sum(bool(row.said or row.verdict) if kind == "none" else row.named for row in rows),
            f"{min(shown):.3f}"
            if (shown := [row.agreement for row in rows if row.agreement is not None])
            else "",
            len(silent),
            f"{np.median(mended):.3f}" if mended else "",
            f"{min(mended):.3f}" if mended else "",
        )


def summary(outcomes: list[Outcome]) -> Mapping[str, float]:
    """Return shares: troubles that were named, and good scans about which something was said or judged."""
    bad, good = ([row for row in outcomes if (row.kind == "none") is none] for none in (False, True))
    return {
        "named": sum(row.named for row in bad) / max(1, len(bad)),
        "false_alarms": sum(bool(row.said or row.verdict) for row in good) / max(1, len(good)),
    }


def main() -> None:
    parser = common.arguments(__doc__, rounds=1)
    parser.add_argument("--scans", type=int, default=200, help="scans with a trouble [200]")
    parser.add_argument("--good", type=int, default=50, help="scans without [50]")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--reconstruct", action="store_true", help="reconstruct, and follow the remedies")
    parser.add_argument("--only", nargs="+", choices=list(KINDS), default=[], metavar="KIND")
    given = parser.parse_args()
    common.print_machine()
    with tempfile.TemporaryDirectory(prefix="troubles_") as folder:
        outcomes: list[Outcome] = []
        for kind, arrays in troubled(given.scans, given.good, given.seed, given.only):
            outcomes.append(judge(kind, arrays, Path(folder), reconstruct=given.reconstruct))
            if given.reconstruct:
                row = outcomes[-1]
                print(
                    f"{kind}: named {row.named}, agreement {row.agreement}, mended {row.mended}", flush=True
                )
    head = ("trouble", "scans", "named", "as it is, least", "wrong in silence", "mended, median", "least")
    common.print_table(head, table(outcomes))
    shares = summary(outcomes)
    print(f"named {shares['named']:.1%}, false alarms {shares['false_alarms']:.1%}")
    for row in outcomes:
        if row.kind == "none" and (row.said or row.verdict):
            print(f"  none: {[finding.what for finding in row.said]} {row.verdict}")
        elif row.kind != "none" and not row.named:
            print(
                f"  {row.kind}: {[finding.what for finding in row.said] or row.verdict or 'nothing is said'}"
            )
        if row.mended is not None and row.mended < RESTORED:
            print(
                f"  {row.kind}: agreement {row.mended:.3f} with {row.options}; {row.verdict_mended or 'good'}"
            )
    common.write_json("troubles", {**shares, "scans": [row.to_json() for row in outcomes]}, given.json)


if __name__ == "__main__":
    main()
