"""What sizes, distances and energies experiments have; another number has another unit, or is wrong."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from ptycho_exec.errors import Finding

JOULE_PER_EV = 1.602176634e-19


class Plausible(NamedTuple):
    """What a quantity can be, in the unit whose size is 1.

    Attributes:
        text: the range in words.
        low: least value.
        high: largest value.
        units: sizes of the units in which it is found in files.
    """

    text: str
    low: float
    high: float
    units: Mapping[str, float]


_EV = {"eV": 1.0, "keV": 1e3, "J": 1 / JOULE_PER_EV}
_M = {"m": 1.0, "mm": 1e-3, "um": 1e-6, "nm": 1e-9, "pm": 1e-12}
PLAUSIBLE: Mapping[str, Plausible] = {
    "photon_energy_eV": Plausible("a photon has 10 eV to 1 MeV", 10.0, 1e6, _EV),
    "wavelength_m": Plausible("a wavelength is 0.5 pm to 1 um", 5e-13, 1e-6, _M),
    "detector_distance_m": Plausible("a detector is 1 mm to 100 m away", 1e-3, 100.0, _M),
    "detector_pixel_size_m": Plausible("a detector pixel has 1 um to 10 mm", 1e-6, 1e-2, _M),
    "pixel_size_m": Plausible("an object pixel has 1 pm to 100 um", 1e-12, 1e-4, _M),
}
"""By the names of `ScanData`; light, X-rays and electrons."""


def doubt(quantity: str, number: float, unit: str, name: str = "") -> str:
    """Return what is odd about a quantity, and in which unit it would not be; nothing where all is well.

    Args:
        quantity: a key of `PLAUSIBLE`.
        number: as it is in the file; its sign does not matter.
        unit: in which it is taken, one of those of the quantity.
        name: of the entry, where it has another one.
    """
    text, low, high, units = PLAUSIBLE[quantity]
    if low <= abs(number) * units[unit] <= high:
        return ""
    fits = [word for word, size in units.items() if low <= abs(number) * size <= high]
    instead = f"; it would be plausible in {' or '.join(fits)}" if fits else ""
    return f"{name or quantity} is {number:g}, taken in {unit}, and {text}{instead}"


def doubts(geometry: Mapping[str, Any]) -> Iterator[Finding]:
    """Yield what is odd about the geometry of a scan, in eV and meters under the names of `ScanData`."""
    for quantity, plausible in PLAUSIBLE.items():
        number = geometry.get(quantity)
        if number and (text := doubt(quantity, number, next(iter(plausible.units)))):
            fix = "correct it in the file"
            fix = f"--pixel-size-m METERS gives another; or {fix}" if quantity == "pixel_size_m" else fix
            yield Finding(text, fix=fix, level="adapted", code="reading")
