"""An object of few counts is denoised without a truth, as far as held-out counts bear; others stay."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch

from ptycho_exec.errors import DataError
from ptycho_torch import simulate_scan
from ptycho_torch.data.scan import ScanData
from ptycho_torch.evaluation.metrics import evaluate
from ptycho_torch.reconstruction import denoise
from ptycho_torch.reconstruction.refine import RefineOptions, RefineResult, refine_object

HELD_OUT = 1 / 16


@cache
def scan_of(photons: float) -> ScanData:
    kind = "siemens_star"
    return simulate_scan(n=32, patterns=256, photons=photons, object_kind=kind, seed=2, contrast=0.5)


def refined(scan: ScanData, **options: object) -> RefineResult:
    chosen = RefineOptions(held_out=HELD_OUT, **options)  # type: ignore[arg-type]
    return refine_object(scan, "flat", 10, options=chosen, seed=1)


def error(scan: ScanData, result: RefineResult) -> float:
    return float(evaluate(result.object, scan.object_guess, coverage=result.coverage).nrmse)


@pytest.mark.slow
def test_an_object_of_few_counts_comes_closer_to_the_truth() -> None:
    scan = scan_of(1e3)
    noisy, clean = refined(scan), refined(scan, denoise="auto")
    assert noisy.denoising is None
    assert clean.denoising is not None
    assert clean.denoising.weight > 0
    assert min(clean.denoising.misfits) < 0
    assert error(scan, clean) < 0.93 * error(scan, noisy)
    assert any("denoised by" in notice for notice in clean.notices)
    again = refined(scan, denoise="auto")
    assert np.array_equal(again.object, clean.object)


def test_of_many_counts_nothing_is_denoised() -> None:
    assert refined(scan_of(1e6), denoise="auto").denoising is None


def test_where_unseen_counts_speak_against_it_the_object_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(denoise, "STEPS", 10)
    monkeypatch.setattr(denoise, "_in_tiles", lambda network, obj: torch.zeros_like(obj))
    scan = scan_of(1e3)
    kept, plain = refined(scan, denoise=True), refined(scan)
    assert kept.denoising is not None
    assert kept.denoising.weight == 0
    assert np.allclose(kept.object, plain.object, atol=1e-5)
    assert any("left out" in notice for notice in kept.notices)


@pytest.mark.parametrize("held_out", [0.0, HELD_OUT])
def test_what_cannot_be_denoised_is_refused_and_the_remedy_works(held_out: float) -> None:
    scan = scan_of(1e3)
    if held_out:
        amplitude = scan.amplitude(np.arange(len(scan))) + 0.3
        scan = replace(scan, patterns=amplitude, domain="amplitude", report={})
    options = RefineOptions(denoise=True, held_out=held_out)
    worked: list[int] = []
    with pytest.raises(DataError, match="cannot be denoised") as caught:
        refine_object(scan, "flat", 2, options=options, progress=lambda done, *_: worked.append(done))
    assert ("; or --likelihood counts" in str(caught.value)) == (held_out > 0), "a way out that works"
    assert "--denoise false" in str(caught.value)
    assert worked == [], "refused before any work is done"
    assert refine_object(scan, "flat", 2, options=replace(options, denoise="auto")).denoising is None


def test_parts_of_the_counts_make_up_the_whole() -> None:
    scan = scan_of(1e3)
    parts = [
        denoise.SplitCounts(scan, torch.device("cpu"), 1.0, 7, shown=shown)[torch.arange(20)].square()
        for shown in (True, False)
    ]
    whole = torch.fft.ifftshift(torch.from_numpy(scan.amplitude(np.arange(20))).square(), dim=(-2, -1))
    assert torch.allclose(sum(parts), whole, atol=1e-3)
    assert abs(float(parts[0].sum() / whole.sum()) - denoise.SHOWN) < 0.02


def test_tiles_join_without_a_seam(monkeypatch: pytest.MonkeyPatch) -> None:
    network = denoise.Denoiser()
    torch.nn.init.normal_(network.unet.head.weight, std=0.1)
    obj = torch.randn(150, 131, dtype=torch.complex64, generator=torch.Generator().manual_seed(0))
    whole = denoise._in_tiles(network, obj)
    monkeypatch.setattr(denoise, "_TILE", 64)
    assert torch.allclose(denoise._in_tiles(network, obj), whole, atol=1e-4)
