"""Patterns that are left out on reading: those that are named by index, and those with something wrong.

Shape legend: M patterns, h x w pixels as stored.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ptycho_exec.errors import DataError
from ptycho_torch.config import DROP_WORDS
from ptycho_torch.data import checks
from ptycho_torch.data.judge import dark_patterns, far_from_others
from ptycho_torch.data.pixels import background_of
from ptycho_torch.data.storage.patterns import Domain, Patterns


def rows_kept(
    text: str,
    positions_px: NDArray[np.float64],
    patterns: Patterns,
    good: NDArray[np.bool_],
    domain: Domain,
    where: str,
    unplaced: NDArray[np.bool_] | None = None,
) -> tuple[NDArray[np.int64], dict[str, int]]:
    """Return the rows that stay, and how many go for each reason.

    Args:
        text: the setting `drop`: "far" from all others, "dark" (below 5 % of the usual intensity), "broken"
            (with values that are no counts, or without a position), and indices.
        positions_px: (M, 2).
        patterns: (M, h, w) as stored.
        good: (h, w) pixels that are not masked.
        domain: of the stored values.
        where: the patterns are, for messages.
        unplaced: (M,) those whose position is not a number.

    Raises:
        DataError: an index that there is not, or nothing left.
    """
    words, indices = read_drop(text)
    count = len(positions_px)
    if indices and max(indices) >= count:
        raise DataError(
            f"drop names pattern {max(indices)}, and there are {count}",
            where=where,
            expected=f"indices from 0 to {count - 1}",
            fix="correct the index; inspect lists those that look wrong",
        )
    gone = {"index": np.isin(np.arange(count), indices)}
    if "far" in words:
        gone["far"] = np.isin(np.arange(count), far_from_others(positions_px, int(patterns.shape[-1])))
    if "dark" in words or "broken" in words:
        sums, mean, wrong = checks.frame_figures(patterns, good)
        if "broken" in words:
            gone["broken"] = wrong > 0 if unplaced is None else (wrong > 0) | unplaced
        if "dark" in words:
            beneath = background_of(mean) * good.sum() if domain == "intensity" else 0.0
            gone["dark"] = np.isin(np.arange(count), dark_patterns(sums - beneath)) & (wrong == 0)
    left = ~np.any(list(gone.values()), axis=0)
    if not left.any():
        raise DataError(
            f"drop = {text} leaves no pattern",
            where=where,
            expected="one or more that stay",
            fix="leave out the word that takes too many: "
            + ", ".join(f"{word} takes {int(rows.sum())}" for word, rows in gone.items()),
        )
    return np.flatnonzero(left), {word: int(rows.sum()) for word, rows in gone.items() if rows.any()}


def read_drop(text: str) -> tuple[list[str], list[int]]:
    """Return the words and the indices of "far, dark, 3, 17, 20-24"."""
    words: list[str] = []
    indices: list[int] = []
    for part in (part.strip() for part in text.split(",")):
        first, _, last = part.partition("-")
        if part in DROP_WORDS:
            words.append(part)
        else:
            indices += range(int(first), int(last or first) + 1)
    return words, indices
