"""Which numbers a geometry can have, and in which unit another one would be right."""

from __future__ import annotations

import pytest

from ptycho_torch.data.geometry import PLAUSIBLE, doubt, doubts


@pytest.mark.parametrize(
    ("quantity", "number", "unit", "end"),
    [
        ("photon_energy_eV", 8000.0, "J", "plausible in eV"),
        ("photon_energy_eV", 8.8, "eV", "plausible in keV"),
        ("photon_energy_eV", 1.28e-15, "eV", "plausible in J"),
        ("wavelength_m", 0.15, "m", "plausible in um or nm"),
        ("detector_distance_m", 2000.0, "m", "plausible in mm or um"),
        ("detector_pixel_size_m", 75.0, "m", "plausible in um"),
        ("pixel_size_m", 12.5, "m", "plausible in um or nm or pm"),
        ("pixel_size_m", 1e9, "m", "an object pixel has 1 pm to 100 um"),
    ],
)
def test_another_unit_is_named(quantity: str, number: float, unit: str, end: str) -> None:
    text = doubt(quantity, number, unit, "an/entry")
    assert text.startswith(f"an/entry is {number:g}, taken in {unit}, and ")
    assert text.endswith(end)


@pytest.mark.parametrize(
    ("quantity", "number"),
    [
        ("photon_energy_eV", 92.0),  # extreme ultraviolet
        ("photon_energy_eV", 300e3),  # electrons
        ("wavelength_m", 1.97e-12),
        ("wavelength_m", 633e-9),
        ("detector_distance_m", -2.0),
        ("detector_pixel_size_m", 55e-6),
        ("pixel_size_m", 1e-11),
        ("pixel_size_m", 2e-8),
    ],
)
def test_what_experiments_have_is_not_doubted(quantity: str, number: float) -> None:
    assert doubt(quantity, number, next(iter(PLAUSIBLE[quantity].units))) == ""
    assert list(doubts({quantity: number})) == []


def test_a_geometry_is_judged_entry_by_entry() -> None:
    found = list(doubts({"pixel_size_m": 12.5, "photon_energy_eV": 8333.0, "detector_distance_m": None}))
    assert [row.what.split(" is ")[0] for row in found] == ["pixel_size_m"]
    assert "--pixel-size-m" in found[0].fix
