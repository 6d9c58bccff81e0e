"""A quantity that carries its unit, as an attribute `units` or `unit`, is read with it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ptycho_exec.errors import DataError
from ptycho_torch.config import UNITS_M, DataConfig
from ptycho_torch.data.geometry import JOULE_PER_EV
from ptycho_torch.data.storage.archive import Archive

_LENGTHS_M = {
    **dict.fromkeys(("m", "meter", "meters", "metre", "metres"), 1.0),
    **dict.fromkeys(("cm", "centimeter", "centimeters"), 1e-2),
    **dict.fromkeys(("mm", "millimeter", "millimeters", "millimetre", "millimetres"), 1e-3),
    **dict.fromkeys(("um", "\u00b5m", "\u03bcm", "micron", "microns", "micrometer", "micrometers"), 1e-6),
    **dict.fromkeys(("nm", "nanometer", "nanometers", "nanometre", "nanometres"), 1e-9),
    **dict.fromkeys(("a", "angstrom", "angstroms", "\u00e5", "\u212b"), 1e-10),
    **dict.fromkeys(("pm", "picometer", "picometers"), 1e-12),
}
_ENERGIES_J = {
    "j": 1.0,
    "joule": 1.0,
    "ev": JOULE_PER_EV,
    "kev": 1e3 * JOULE_PER_EV,
}
_PIXELS = ("px", "pix", "pixel", "pixels")
_NO_LENGTH = (*_PIXELS, "1", "dimensionless", "")


def length_m(archive: Archive, name: str) -> float:
    """Return the meters in the unit of an array; 1 where the file states none."""
    return _factor(archive, name, _LENGTHS_M, 1.0)


def energy_j(archive: Archive, name: str, otherwise: float = 1.0) -> float:
    """Return the joules in the unit of an array; `otherwise` where the file states none."""
    return _factor(archive, name, _ENERGIES_J, otherwise)


def position_m(archive: Archive, name: str) -> float | None:
    """Return the meters in the unit of positions; None where that is a pixel, or not stated."""
    word = stated(archive, name)
    return None if word is None or word in _NO_LENGTH else length_m(archive, name)


def in_pixels(archive: Archive, name: str, config: DataConfig) -> bool:
    """Return whether the config, or else the file, says that positions are in object pixels."""
    if config.positions_unit != "auto":
        return config.positions_unit == "px"
    return stated(archive, name) in _PIXELS


def position_unit_m(archive: Archive | None, name: str, config: DataConfig) -> float | None:
    """Return the meters in the unit of positions that the config names, else in that which the file states.

    None where that is a pixel, or not stated.
    """
    if config.positions_unit != "auto":
        return UNITS_M.get(config.positions_unit)
    return position_m(archive, name) if archive is not None and name in archive else None


def units_of_columns(archive: Archive, names: Sequence[str], config: DataConfig) -> list[float | None]:
    """Return the meters in the unit of each coordinate; None in all where that is a pixel, or not stated.

    Raises:
        DataError: one is a length and the other is not.
    """
    units = [position_unit_m(archive, name, config) for name in names]
    if len({unit is None for unit in units}) > 1:
        (length,) = (name for name, unit in zip(names, units, strict=True) if unit is not None)
        (other,) = (name for name, unit in zip(names, units, strict=True) if unit is None)
        raise DataError(
            f"{length} has the unit {stated(archive, length)!r}, {other} none that is a length",
            where=str(archive.path),
            expected="both coordinates as lengths, or both in object pixels",
            fix="--positions-unit px, nm ... says what both are",
        )
    return units


def stated(archive: Archive, name: str) -> str | None:
    """Return the unit that the file states, in small letters; None when it does not."""
    for key in ("units", "unit"):
        value = archive.attribute(name, key)
        if value is not None:
            items = np.asarray(value).reshape(-1).tolist()  # some programs write arrays of one string
            words = [
                item.decode("utf-8", "replace") if isinstance(item, bytes) else str(item) for item in items
            ]
            return (words[0] if len(set(words)) == 1 else str(words)).strip().casefold()
    return None


def _factor(archive: Archive, name: str, known: dict[str, float], otherwise: float) -> float:
    word = stated(archive, name)
    if not word:
        return otherwise
    if word not in known:
        raise DataError(
            f"{name} has the unit {word[:40]!r}",
            where=str(archive.path),
            expected=f"one of {', '.join(known)}",
            fix="correct the attribute, or remove it if the number is in SI units",
        )
    return known[word]
