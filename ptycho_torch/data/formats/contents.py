"""What a file of unknown names holds, and what in it is likely to be what: for messages that can be followed.

Shape legend: M patterns, ky x kx pixels, ny x nx points of a raster.
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Callable, Sequence

from ptycho_exec.errors import DataError
from ptycho_torch.data.storage.archive import Archive, Member


def contents(archive: Archive, most: int = 24) -> str:
    """Return names and shapes of what a file holds, for a message."""
    found = archive.members()
    listed = [f"{item.name} {_shape_text(item.shape)} {item.dtype}" for item in found[:most]]
    return ", ".join(listed) + (", ..." if len(found) > most else "") if listed else "no arrays"


def _shape_text(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape)) or "scalar"


def map_option(part: str, name: str) -> str:
    """Return the option that names a part, quoted for a shell."""
    return f"--map {shlex.quote(f'{part}={name}')}"


def likely_map(archive: Archive) -> str:
    """Return options with which a file of unknown names can probably be read; empty where none are likely.

    What is what is guessed by shapes: the largest stack holds the patterns; positions are pairs of as many
    numbers; probe, object and mask are images of the right size.
    """
    every = [item for item in archive.members() if 0 not in item.shape]
    stacks = [item for item in every if _is_stack(item)]
    if not stacks:
        return ""
    patterns = max(stacks, key=lambda item: item.nbytes)
    group = _group_of_frames(patterns, stacks)
    count, frame = _count_and_frame(patterns, every)
    total = sum(s.shape[0] for s in stacks if group and s.name.startswith(group + "/")) if group else count
    chosen = {"patterns": group or patterns.name} | _likely_positions(every, total)
    rest = [item for item in every if item.name not in (patterns.name, *chosen.values())]
    images = {"probe": _likely_probe(rest, frame), "object": _likely_object(rest, frame)}
    images["mask"] = _likely_mask(rest, frame)
    chosen |= {part: name for part, name in images.items() if name}
    words = [map_option(part, name) for part, name in chosen.items()]
    if "positions" not in chosen and "positions_y" not in chosen:
        words.append("--map positions=FILE" if len(patterns.shape) == 3 else "--scan-step STEP")
    return " ".join(words)


def _is_stack(item: Member) -> bool:
    sides = sorted(item.shape)[-3:]
    return len(item.shape) >= 3 and item.dtype.kind in "iuf" and len(sides) == 3 and sides[-2] >= 8


def _group_of_frames(patterns: Member, stacks: Sequence[Member]) -> str:
    """Return the group that holds several stacks of like patterns, as detectors write them; or nothing."""
    group = patterns.name.rpartition("/")[0]
    like = [item for item in stacks if item.name.rpartition("/")[0] == group]
    same = {item.shape[1:] for item in like}
    return group if group and len(like) > 1 and len(same) == 1 and len(patterns.shape) == 3 else ""


def _count_and_frame(patterns: Member, every: Sequence[Member]) -> tuple[int, tuple[int, int]]:
    """Return the number of patterns and their shape; which axis counts them, the other arrays tell."""
    shape = patterns.shape
    first = math.prod(shape[:-2]), (shape[-2], shape[-1])
    last = math.prod(shape[2:]), (shape[0], shape[1])
    if _likely_positions(every, first[0]) or not _likely_positions(every, last[0]):
        return first
    return last


_MEANT = ("pos", "scan", "coord", "trans", "shift", "point", "xy", "yx")


def _likely_positions(every: Sequence[Member], count: int) -> dict[str, str]:
    numbers = [item for item in every if item.dtype.kind in "iuf"]
    pairs = [
        item
        for item in numbers
        if math.prod(item.shape) == 2 * count and 2 in (item.shape[0], item.shape[-1])
    ]
    pairs = [item for item in pairs if len([n for n in item.shape if n > 1]) > 1]
    if pairs:
        return {"positions": min(pairs, key=_meaning(_MEANT)).name}
    columns = [item for item in numbers if math.prod(item.shape) == count and count > 1]
    named = {item.name.casefold(): item.name for item in columns}
    for x in sorted(named, key=lambda name: (not any(word in name for word in _MEANT), name)):
        for place in (index for index, letter in enumerate(x) if letter == "x"):
            y = x[:place] + "y" + x[place + 1 :]
            if y in named:
                return {"positions_y": named[y], "positions_x": named[x]}
    return {}


def _meaning(words: Sequence[str]) -> Callable[[Member], tuple[bool, str]]:
    """Return a key that sorts names with one of the words first."""
    return lambda item: (not any(word in item.name.casefold() for word in words), item.name)


def _is_complex(item: Member) -> bool:
    return item.dtype.kind == "c" or item.dtype.names == ("real", "imag")


def _likely_probe(every: Sequence[Member], frame: tuple[int, int]) -> str:
    words = ("probe", "illum")
    slim = {item.name: tuple(n for n in item.shape if n > 1) for item in every}
    fits = [
        item
        for item in every
        if {*frame} == {*slim[item.name][-2:]}
        and (_is_complex(item) or any(w in item.name.casefold() for w in words))
    ]
    fits = [item for item in fits if item.dtype.kind in "iufc" or _is_complex(item)]
    fits = [item for item in fits if "object" not in item.name.casefold()]
    return min(fits, key=_meaning(words)).name if fits and frame[0] == frame[1] else ""


def _likely_object(every: Sequence[Member], frame: tuple[int, int]) -> str:
    fits = [
        item for item in every if _is_complex(item) and len(item.shape) == 2 and min(item.shape) > max(frame)
    ]
    return min(fits, key=_meaning(("object", "obj"))).name if fits else ""


def _likely_mask(every: Sequence[Member], frame: tuple[int, int]) -> str:
    words = ("mask", "bad")
    fits = [
        item
        for item in every
        if item.shape == frame and item.dtype.kind in "biu" and any(w in item.name.casefold() for w in words)
    ]
    return min(fits, key=_meaning(words)).name if fits else ""


def not_there(archive: Archive, part: str, name: str) -> DataError:
    """Return the error for a part that is not where it was looked for."""
    return DataError(
        f"map names {name!r} for {part}, and the file has no such array"
        if name
        else f"the {part} are missing",
        where=str(archive.path),
        expected=f"one of: {contents(archive)}",
        fix=hint(archive) or f"name it: --map {part}=NAME",
    )


def hint(archive: Archive) -> str:
    """Return what to type for a file of unknown names; nothing where it holds no stack of patterns."""
    likely = likely_map(archive)
    return f"say what is what; likely: {likely}" if likely else ""
