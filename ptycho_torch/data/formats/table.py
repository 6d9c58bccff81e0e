"""The file formats, one row each: how a file is recognised, what is in it, how it is read and written."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from ptycho_torch.config import DataConfig
from ptycho_torch.data.assemble import RawScan
from ptycho_torch.data.formats import cxi, mapped, npz, ptychodus
from ptycho_torch.data.formats.paired import Diffraction, Product
from ptycho_torch.data.scan import ScanData
from ptycho_torch.data.storage.archive import Archive, first_present

Writer = Callable[[ScanData, Path], Path]


class Halves(NamedTuple):
    """Readers of a format whose scans may lie in two files, one of which may have another such format."""

    positions: Callable[[Archive, Archive, DataConfig], Product]
    """From the file with the positions; the file with the patterns, often the same, completes it."""
    patterns: Callable[[Archive], Diffraction]


@dataclass(frozen=True)
class Format:
    """A file format.

    Attributes:
        name: as reports give it.
        parts: of a file: "patterns", "positions", both, or nothing when the file has another format.
        read: of a file with both parts; or one reader for each part.
        probe: name of the probe in a file with positions, None without one.
        truth: name of the object there, None without one.
        writers: by the name that `convert` takes.
    """

    name: str
    parts: Callable[[Archive], set[str]]
    read: Callable[[Archive, DataConfig], RawScan] | Halves
    probe: Callable[[Archive], str | None]
    truth: Callable[[Archive], str | None]
    writers: Mapping[str, Writer]


FORMATS = (
    Format(
        name="npz",
        parts=lambda file: {"patterns", "positions"} if npz.is_npz_scan(file) else set(),
        read=npz.read_npz,
        probe=lambda file: first_present(file, "probeGuess"),
        truth=lambda file: first_present(file, "objectGuess"),
        writers={
            "npz": npz.write_npz,
            "npz-amplitude": lambda scan, path: npz.write_npz(scan, path, "amplitude"),
        },
    ),
    Format(
        name="CXI",
        parts=cxi.parts,
        read=Halves(cxi.read_product, cxi.read_diffraction),
        probe=cxi.probe_name,
        truth=cxi.object_name,
        writers={"cxi": cxi.write_cxi},
    ),
    Format(
        name="Ptychodus training data",
        parts=lambda file: {"patterns", "positions"} if ptychodus.is_training(file) else set(),
        read=lambda file, _config: ptychodus.read_training(file),
        probe=lambda file: first_present(file, "probe"),
        truth=lambda file: first_present(file, "object"),
        writers={"ptychodus-training": ptychodus.write_training},
    ),
    Format(
        name="Ptychodus product and diffraction",
        parts=ptychodus.parts,
        read=Halves(
            lambda product, _, config: ptychodus.read_product(product, config), ptychodus.read_diffraction
        ),
        probe=lambda file: first_present(file, "probe"),
        truth=lambda file: first_present(file, "object"),
        writers={
            "ptychodus": ptychodus.write_ptychodus,
            "ptychodus-npz": lambda scan, path: ptychodus.write_ptychodus(scan, path, suffix=".npz"),
        },
    ),
)
"""The first row that finds parts in a file reads it."""


def with_map(row: Format, config: DataConfig) -> Format:
    """Return a format in which probe and object are where the config's map says."""
    return replace(
        row,
        probe=(lambda _: config.map["probe"]) if "probe" in config.map else row.probe,
        truth=(lambda _: config.map["object"]) if "object" in config.map else row.truth,
    )


def mapped_format(config: DataConfig) -> Format:
    """Return the format of a file whose names the config gives."""
    return Format(
        name="mapped keys",
        parts=lambda _: {"patterns", "positions"},
        read=mapped.read_mapped,
        probe=lambda file: mapped.name_of(file, "probe", config),
        truth=lambda file: mapped.name_of(file, "object", config),
        writers={},
    )


WRITERS: dict[str, Writer] = {name: write for row in FORMATS for name, write in row.writers.items()}
