"""The option that a finding or an error about data names is carried out as written, and mends its cause."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from ptycho_exec.errors import DataError
from ptycho_exec.sources.discovery import Request
from ptycho_exec.sources.resolve import resolve
from ptycho_torch.config import DataConfig
from ptycho_torch.data.assemble import scan_from_arrays
from ptycho_torch.data.scan import ScanData
from ptycho_torch.settings import ScienceSettings
from ptycho_torch.simulate import simulate_scan

SCAN = simulate_scan(n=32, patterns=64, photons=1e5, seed=3)
COUNTS = np.asarray(SCAN.patterns).astype(np.uint16)
RNG = np.random.default_rng(0)
FLAG = re.compile(r"--([a-z-]+) ([\w.,-]*\w)")


def changed(change: Callable[[Any], Any], dtype: str = "uint16") -> dict[str, Any]:
    patterns = COUNTS.astype(dtype)
    change(patterns)
    return {"patterns": patterns}


def some(value: float, count: int, *, frames: Any = slice(None)) -> Callable[[Any], None]:
    """Return what sets pixels away from the beam."""
    rows = np.arange(2, 2 + 2 * count, 2)

    def change(patterns: Any) -> None:
        patterns[frames, rows, rows % 7 + 1] = value

    return change


def dark(count: int) -> Callable[[Any], None]:
    def change(patterns: Any) -> None:
        patterns[:count] = 0

    return change


def far(count: int) -> dict[str, Any]:
    positions = SCAN.positions_px.copy()
    positions[:count] += 900
    return {"positions_px": positions}


def typed(flags: dict[str, str]) -> DataConfig:
    """Return what flags on a command line give."""
    texts = {name.replace("-", "_"): (text,) for name, text in flags.items()}
    return ScienceSettings.from_resolution(resolve(Request(ScienceSettings, flags=texts))).config.data


def read(config: DataConfig | None = None, **parts: Any) -> ScanData:
    given = {"patterns": COUNTS, "positions_px": SCAN.positions_px, "probe": SCAN.probe, **parts}
    return scan_from_arrays(given.pop("patterns"), **given, config=config)


FINDINGS: dict[str, tuple[str, dict[str, Any]]] = {
    "a few closed shutters": ("dark-patterns", changed(dark(5))),
    "nearly all shutters closed": ("dark-patterns", changed(dark(60))),
    "a position far away": ("far-positions", far(1)),
    "hot pixels": ("hot-pixels", changed(some(9000, 6))),
    "stuck pixels": ("stuck-pixels", changed(some(3, 5))),
    "values at the largest number": ("saturated", changed(some(65535, 3, frames=slice(0, 9)))),
    "corner": ("corner-frequency", {"patterns": np.fft.ifftshift(COUNTS, axes=(1, 2))}),
    "off center": ("off-center", {"patterns": np.roll(COUNTS, (4, -5), axis=(1, 2))}),
    "background": ("background", {"patterns": COUNTS + RNG.poisson(40, COUNTS.shape).astype(np.uint16)}),
    "detector units": ("gain", {"patterns": COUNTS.astype(np.uint32) * 37}),
}


@pytest.mark.parametrize("trouble", FINDINGS)
def test_the_option_of_a_finding_is_the_flag_it_names_and_removes_it(trouble: str) -> None:
    code, parts = FINDINGS[trouble]
    finding = next(found for found in read(**parts).findings if found.code == code)
    named = dict(FLAG.findall(finding.fix))
    for name in finding.options:
        assert name.replace("_", "-") in named
    after = read(typed(named), **parts)
    assert code not in [found.code for found in after.findings]


ERRORS: dict[str, dict[str, Any]] = {
    "a pixel without a number now and then": changed(some(np.nan, 3, frames=slice(0, 9)), "float32"),
    "infinite in half precision": changed(some(np.inf, 3, frames=slice(0, 9)), "float16"),
    "negative": {"patterns": COUNTS.astype(np.int32) - 2, "domain": "intensity"},
    "below zero by a pedestal": {"patterns": COUNTS.astype(np.int32) - 200, "domain": "intensity"},
    "positions without a number": {
        "positions_px": np.where(np.arange(64)[:, None] % 20, SCAN.positions_px, np.nan)
    },
    "whole patterns without a number": changed(lambda patterns: patterns[3:8].fill(np.nan), "float32"),
    "not square": {"patterns": COUNTS[:, :, 4:-4], "probe": None},
    "a probe of more pixels": {"probe": np.ones((48, 48), np.complex64)},
    "a probe of fewer pixels": {"probe": np.ones((16, 16), np.complex64)},
    "a probe that is zero": {"probe": np.zeros((32, 32), np.complex64)},
    "a probe without a number": {"probe": np.full((32, 32), np.nan, np.complex64)},
}


@pytest.mark.parametrize("trouble", ERRORS)
def test_each_flag_of_an_error_makes_the_scan_readable(trouble: str) -> None:
    parts = ERRORS[trouble]
    with pytest.raises(DataError) as caught:
        read(**parts)
    (finding,) = caught.value.findings
    flags = FLAG.findall(finding.fix)
    assert flags, finding.fix
    for name, value in flags:
        assert len(read(typed({name: value}), **parts)) > 0
