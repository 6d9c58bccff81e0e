"""Files beside the scan that options of reading name: mask, dark frame, probe, parts of the scan.

They are data of a run as its scan is: it records their places and hashes, and finds them from anywhere.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ptycho_exec.fields.base import ReadOnly
from ptycho_exec.files import file_sha256
from ptycho_torch.config import DataConfig, ScienceConfig
from ptycho_torch.data.probe_file import WORDS, result_with_probe
from ptycho_torch.data.storage.array_file import file_of


def other_files(config: DataConfig, beside: Path | None) -> dict[str, dict[str, str]]:
    """Return place and SHA-256 of each such file, by the option that names it.

    Args:
        config: the options.
        beside: the file of the scan, in whose folder they may lie.
    """
    found: dict[str, dict[str, str]] = {}
    for option, text in _named(config):
        place = file_of(_result_file(option, text, beside), beside)
        if place is not None:
            found[option] = {"path": os.path.abspath(place[0]), "sha256": file_sha256(place[0])}
    return found


def from_here(science: ScienceConfig) -> ScienceConfig:
    """Return the science with the absolute place of each such file that lies in the working directory.

    One that lies beside the scan goes with it, and stays as it is.
    """
    places = {option: _absolute(text) for option, text in _named(science.data)}
    values: dict[str, Any] = {name: place for name, place in places.items() if "." not in name}
    parts = {name.partition(".")[2]: place for name, place in places.items() if "." in name}
    values |= {"map": ReadOnly({**science.data.map, **parts})} if parts else {}
    if all(getattr(science.data, name) == value for name, value in values.items()):
        return science
    return science.model_copy(update={"data": science.data.model_copy(update=values)})


def _named(config: DataConfig) -> Iterator[tuple[str, str]]:
    """Yield option and text; a name of `map` is a file where it looks like one, else a key of the scan's."""
    for option in ("dark_file", "mask_file"):
        if (text := getattr(config, option)) is not None:
            yield option, str(text)
    if config.probe not in WORDS:
        yield "probe", config.probe
    for part, name in config.map.items():
        if Path(str(name).partition(":")[0]).suffix:
            yield f"map.{part}", str(name)


def _result_file(option: str, text: str, beside: Path | None) -> str:
    inside = result_with_probe(text, beside) if option == "probe" else None
    return text if inside is None else str(inside)


def _absolute(text: str) -> str:
    place = file_of(text)
    if place is None:
        return os.path.abspath(text) if os.path.isdir(text) else text
    path, name = place
    return os.path.abspath(path) + (f":{name}" if name else "")
