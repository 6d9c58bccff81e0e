"""Troubles of a detector, added to a measured scan: are they named, and what are the printed remedies worth?

Nobody knows the true object of a measured scan, so each is compared with that of the scan as it is. `inspect`
and `infer` are asked for every trouble; then the options that they print are added, word for word, until they
print none that is new, and the scan is reconstructed once more.

    ptycho-torch convert MEASURED scan.npz --probe FILE [...]     # reads without options, has a good probe
    python benchmarks/star_troubles.py --scan scan.npz [--patterns 200] [--epochs 10] [--only TROUBLE ...]
"""

from __future__ import annotations

import contextlib
import io
import re
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import common
import numpy as np
from numpy.typing import NDArray

Patterns = NDArray[Any]
Rng = np.random.Generator
ROUNDS = 4
ENOUGH = 0.99
"""Agreement with the object of the scan without the trouble."""
CLOSE = 0.01
"""Difference of R where positions are off: the objects are no longer on the same places."""


@dataclass(frozen=True)
class Trouble:
    """What is done to patterns (M, N, N) and positions (M, 2), and what names it in what is printed."""

    patterns: Callable[[Patterns, Rng], Patterns] = lambda patterns, _: patterns
    words: str = ""
    positions_px: float = 0.0


def _distance(patterns: Patterns) -> NDArray[Any]:
    y, x = np.indices(patterns.shape[1:]) - patterns.shape[1] // 2
    return np.asarray(np.hypot(y, x))


def _units(counts: Patterns, rng: Rng) -> Patterns:
    return np.round(37 * counts + 100 + rng.normal(0, 4, counts.shape))


def _gap(value: float) -> Callable[[Patterns, Rng], Patterns]:
    def make(counts: Patterns, _: Rng) -> Patterns:
        n = counts.shape[1]
        gaps = counts.astype(np.float64)
        gaps[:, n * 5 // 16 : n * 5 // 16 + 8] = value
        gaps[:, :, n * 9 // 16 : n * 9 // 16 + 4] = value
        return gaps.astype(np.uint32)

    return make


def _hot(counts: Patterns, rng: Rng) -> Patterns:
    flat = counts.reshape(len(counts), -1).copy()
    flat[:, rng.choice(flat.shape[1], 30, replace=False)] = rng.uniform(2e3, 6e4, 30).round()
    return flat.reshape(counts.shape)


TROUBLES: dict[str, Trouble] = {
    "none": Trouble(),
    "3 counts of background": Trouble(
        lambda counts, rng: counts + rng.poisson(3, counts.shape), "background"
    ),
    "gain 37, pedestal 100": Trouble(_units, "detector units|background"),
    "the same, subtracted and clipped": Trouble(
        lambda counts, rng: np.maximum(_units(counts, rng) - 100, 0), "detector units"
    ),
    "the same, not clipped": Trouble(
        lambda counts, rng: _units(counts, rng) - 100, "negative|below 0|detector units"
    ),
    "gap of zeros": Trouble(_gap(0), "dead"),
    "gap of the largest number": Trouble(_gap(2**32 - 1), "masked"),
    "beam stop": Trouble(lambda counts, _: np.where(_distance(counts) < 14, 0, counts), "dead"),
    "30 hot pixels": Trouble(_hot, "hot|stuck"),
    "beam 6 and 9 px off": Trouble(lambda counts, _: np.roll(counts, (6, 9), axis=(1, 2)), "off the center"),
    "positions off by 3 px rms": Trouble(words="positions:", positions_px=3.0),
}


@dataclass(frozen=True)
class Row:
    """What was printed about a trouble, and what came of it."""

    trouble: str
    by_inspect: bool
    by_infer: bool
    r_factor: float | None
    verdict: str
    agreement: float | None
    options: str
    r_mended: float | None
    verdict_mended: str
    agreement_mended: float | None
    judged: tuple[str, str]
    """What `infer` says of either object, with likely causes."""
    cpu_s: float


@dataclass(frozen=True)
class Object:
    """What `infer` left, None where it refused, and what it printed."""

    printed: str
    array: NDArray[Any] | None
    coverage: NDArray[Any] | None
    r_factor: float | None
    status: str


def part_of(path: Path, count: int) -> dict[str, Any]:
    """Return the arrays of a scan: the patterns nearest its middle, as floats, with the probe."""
    from ptycho_torch.data.read import read_scan

    scan = read_scan(path)
    apart = np.linalg.norm(scan.positions_px - np.median(scan.positions_px, axis=0), axis=1)
    rows = np.sort(np.argsort(apart, kind="stable")[:count])
    return {
        "diff3d": np.asarray(scan.patterns[rows]).astype(np.float32),
        "positions": scan.positions_px[rows] - scan.position_shift_px,
        "probeGuess": scan.probe,
        "bad_pixels": ~scan.good_pixels,
        "domain": scan.domain,
        "patch_center": scan.report["patch_center"]["value"],
    }


def write(path: Path, arrays: dict[str, Any], trouble: Trouble) -> Path:
    """Write a scan with a trouble; counts that were floats stay floats."""
    rng = np.random.default_rng(0)
    patterns = trouble.patterns(arrays["diff3d"], rng)
    patterns = patterns if patterns.dtype == np.uint32 else patterns.astype(np.float32)
    off = rng.normal(0, trouble.positions_px / np.sqrt(2), arrays["positions"].shape)
    y, x = (arrays["positions"] + off).T
    rest = {name: value for name, value in arrays.items() if name != "positions"}
    np.savez(path, **{**rest, "diff3d": patterns, "ycoords": y, "xcoords": x})
    return path


def said(words: list[str]) -> str:
    """Run a command of `ptycho-torch` and return what it prints."""
    from ptycho_torch.cli import main

    printed = io.StringIO()
    with warnings.catch_warnings(), contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
        warnings.simplefilter("ignore")
        with contextlib.suppress(SystemExit):
            main(words)
    return printed.getvalue()


def lines_naming(printed: str, words: str) -> list[str]:
    """Return what is printed of a trouble: warnings and likely causes, and all of an error."""
    lines = printed.splitlines()
    error = next((row for row, line in enumerate(lines) if line.startswith("ptycho-torch:")), None)
    relevant = (
        lines[error:]
        if error is not None
        else [line for line in lines if re.match(r"warning|  likely", line)]
    )
    named = [line for line in relevant if words and re.search(words, line)]
    return relevant if error is not None and named else named


def options_in(lines: list[str]) -> dict[str, str]:
    """Return the flags that lines ask for, with their values, where they stand to be typed."""
    found: dict[str, str] = {}
    for line in lines:
        asked = re.sub(r"`[^`]*`", "", line).split("; or ")[0].split(" or --")[0]
        found |= dict(re.findall(r"(--[a-z][a-z-]+)[ =]([\w.]+)", asked))
    return found


def typed(options: dict[str, str]) -> list[str]:
    return [f"{flag}={value}" for flag, value in options.items()]


def infer(scan: Path, out: Path, epochs: int, options: dict[str, str]) -> Object:
    """Reconstruct from a flat object, with one thread."""
    import json

    words = ["infer", "--start", "flat", "--refine", str(epochs), str(scan), "--out", str(out)]
    printed = said([*words, "--num-threads", "1", "--enable-progress-bar", "false", *typed(options)])
    if not (out / "reconstruction.npz").exists():
        return Object(printed, None, None, None, "refused")
    with np.load(out / "reconstruction.npz") as held:
        array, coverage = held["object"], held["coverage"]
    verdict = json.loads((out / "manifest.json").read_text())["verdict"]
    return Object(printed, array, coverage, verdict["r_factor"], verdict["status"])


def agreement(found: Object, clean: Object) -> float | None:
    """Return the correlation of two objects, free of phase, ramp and shift."""
    from ptycho_torch.evaluation.metrics import evaluate

    if found.array is None or clean.array is None:
        return None
    shape = tuple(np.minimum(found.array.shape, clean.array.shape))
    here = tuple(slice(0, side) for side in shape)
    scored = evaluate(found.array[here], clean.array[here], coverage=clean.coverage[here])
    ours, true = scored.reconstruction, scored.truth
    return float(abs(np.vdot(true, ours)) / (np.linalg.norm(true) * np.linalg.norm(ours)))


def judge(name: str, scan: Path, folder: Path, epochs: int, clean: Object | None) -> tuple[Row, Object]:
    """Ask about a trouble, follow what is printed, and compare with the object without it."""
    began, words = time.process_time(), TROUBLES[name].words
    by_inspect = lines_naming(said(["inspect", str(scan)]), words)
    first = infer(scan, folder / "as_it_is", epochs, {})
    by_infer = lines_naming(first.printed, words)
    options: dict[str, str] = {}
    asked = options_in(by_inspect) or options_in(by_infer)
    for _ in range(ROUNDS):
        new = {flag: value for flag, value in asked.items() if flag not in options}
        if not new:
            break
        options |= new
        asked = options_in(lines_naming(said(["inspect", str(scan), *read_only(options)]), words))
    last = infer(scan, folder / "mended", epochs, options) if options else first
    row = Row(
        name, bool(by_inspect), bool(by_infer), first.r_factor, first.status,
        agreement(first, clean or first), " ".join(" ".join(pair) for pair in options.items()),
        last.r_factor, last.status, agreement(last, clean or last),
        (verdict_in(first.printed), verdict_in(last.printed)), time.process_time() - began,
    )  # fmt: skip
    return row, last


def verdict_in(printed: str) -> str:
    """Return the verdict on an object, with its likely causes."""
    verdict = r"(note: )?the object (is (good|doubtful|poor)|cannot)|  likely cause"
    return "\n".join(line for line in printed.splitlines() if re.match(verdict, line))


def read_only(options: dict[str, str]) -> list[str]:
    """Return the options without those of the refinement, which `inspect` does not take."""
    return typed({flag: value for flag, value in options.items() if not flag.startswith("--refine")})


def cells(row: Row) -> Iterator[object]:
    """Return the cells of a table."""
    by = [word for word, yes in (("inspect", row.by_inspect), ("infer", row.by_infer)) if yes]
    yield from (row.trouble, ", ".join(by), _number(row.r_factor), row.verdict, _number(row.agreement))
    yield from (row.options, _number(row.r_mended), row.verdict_mended, _number(row.agreement_mended))


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def main() -> None:
    parser = common.arguments(__doc__, rounds=1)
    parser.add_argument(
        "--patterns", type=int, default=200, help="those nearest the middle of the scan [200]"
    )
    parser.add_argument("--epochs", type=int, default=10, help="of each refinement [10]")
    parser.add_argument(
        "--only", nargs="+", choices=list(TROUBLES), default=list(TROUBLES), metavar="TROUBLE"
    )
    given = parser.parse_args()
    if given.scan is None or not given.scan.is_file():
        print(f"skipped: --scan names a measured scan, and {given.scan} is no file")
        return
    common.print_machine()
    arrays, rows = part_of(given.scan, given.patterns), []
    clean: Object | None = None
    for name in dict.fromkeys(["none", *given.only]):
        with tempfile.TemporaryDirectory(prefix="star_") as place:
            scan = write(Path(place) / "scan.npz", arrays, TROUBLES[name])
            row, found = judge(name, scan, Path(place), given.epochs, clean)
        clean = clean or found
        rows.append(row)
        print(f"{name}: {' | '.join(map(str, cells(row)))}", flush=True)
    head = ("trouble", "named by", "R", "verdict", "agrees", "remedy", "R", "verdict", "agrees")
    common.print_table(head, [tuple(cells(row)) for row in rows])
    common.write_json("star_troubles", {"rows": [asdict(row) for row in rows]}, given.json)


if __name__ == "__main__":
    main()
