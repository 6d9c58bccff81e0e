"""Names that are nearly right: retired ones, misspelt ones, and what was meant."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from unicodedata import normalize

from ptycho_exec.errors import Finding
from ptycho_exec.sources.classes import spec_elsewhere

_LONGEST = 80

RETIRED = {
    "accumulate_grad_batches": "accum_steps",
    "accumulation_steps": "accum_steps",
    "batchsize": "batch_size",
    "checkpoint_metric": "checkpoint_monitor_metric",
    "clip": "gradient_clip_val",
    "clip_grad": "gradient_clip_val",
    "device": "accelerator",
    "early_stopping_patience": "early_stop_patience",
    "eval_batch_size": "inference_batch_size",
    "gradient_accumulation_steps": "accum_steps",
    "gradient_clip_value": "gradient_clip_val",
    "grad_clip": "gradient_clip_val",
    "logger": "logger_backend",
    "lr": "learning_rate",
    "lr_scheduler": "scheduler",
    "mixed_precision": "precision",
    "monitor": "checkpoint_monitor_metric",
    "n_devices": "devices",
    "n_workers": "num_workers",
    "ngpu": "devices",
    "nodes": "num_nodes",
    "patience": "early_stop_patience",
    "progress_bar": "enable_progress_bar",
    "random_seed": "seed",
    "save_top_k": "checkpoint_save_top_k",
    "workers": "num_workers",
}
"""Names of other programs and earlier versions, with ours."""


def distance(a: str, b: str) -> int:
    """Edits between two words: insert, delete, replace, or swap neighbors (optimal string alignment)."""
    before: list[int] = []
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        older, before, row = before, row, [i]
        for j, y in enumerate(b, 1):
            cost = min(before[j] + 1, row[j - 1] + 1, before[j - 1] + (x != y))
            if i > 1 and j > 1 and x == b[j - 2] and a[i - 2] == y:
                cost = min(cost, older[j - 2] + 1)
            row.append(cost)
    return row[-1]


def nearest(name: str, candidates: Iterable[str], most: int = 3) -> list[str]:
    """Return the candidates that could have been meant, nearest first, none much farther than the first."""
    bare = _bare(name)
    if len(bare) > _LONGEST:
        return []
    allowed = max(1, len(bare) // 3)
    words = ((_bare(candidate), candidate) for candidate in candidates)
    near = ((word, candidate) for word, candidate in words if abs(len(word) - len(bare)) <= allowed)
    scored = sorted((distance(bare, word), candidate) for word, candidate in near)
    allowed = min(allowed, scored[0][0] + 1) if scored else 0
    return [candidate for score, candidate in scored if score <= allowed][:most]


# Cyrillic and Greek letters that look like Latin ones, as a copied text or another keyboard layout has them.
_ALIKE = str.maketrans("авеікмнорстухѕјԁαεικνορτυχ", "abeikmhopctyxsjdaeiknoptux")


def _bare(name: str) -> str:
    """Return a name in plain lower case, without the prefix of variables and the dashes of flags."""
    if not name.isascii():
        name = normalize("NFKC", name).lower().translate(_ALIKE)
    return name.lower().replace("-", "_").removeprefix("__").removeprefix("ptycho_exec_")


def unknown_name(
    name: str,
    candidates: Sequence[str],
    *,
    where: str,
    noun: str = "setting",
    file: str | None = None,
    line: int | None = None,
) -> Finding:
    """Return the finding for a name that is none of `candidates`, with the likeliest meant one first."""
    bare, close = _bare(name), nearest(name, candidates)
    shown = name if len(name) <= _LONGEST else f"{name[:_LONGEST]}... ({len(name)} characters)"
    quoted = f"{shown!a}, whose letters only look right" if close and not name.isascii() else repr(shown)
    renamed = next((word for word in candidates if _bare(word) == RETIRED.get(bare)), None)
    if renamed is not None:  # `device` may be another program's name of accelerator, or a misspelt devices
        close = [renamed, *(c for c in close if c != renamed and distance(bare, _bare(c)) == 1)]
    ours = bare in map(_bare, candidates)
    owner = spec_elsewhere(bare) if noun == "setting" and renamed is None and not ours else None
    if owner is not None:
        close = [owner.variable if name.isupper() else owner.name]
    listed = "--help" if noun == "flag" else "`ptycho-exec show`"
    all_of_them = ", ".join(candidates) if len(candidates) <= 12 else f"a {noun} listed by {listed}"
    if renamed is not None:
        fix = f"write {renamed}, as this program calls it"
    elif owner is not None:
        program = getattr(owner.model, "program", "")
        ways = f"set {owner.variable}, or write {owner.name} in {program}.toml"
        fix = f"it is a setting of {program}: {ways}"
    else:
        fix = f"write {close[0]}, or remove it" if close else "remove it"
    return Finding(
        f"unknown {noun} {quoted}",
        where=where,
        expected=" or ".join(close) or all_of_them,
        fix=fix,
        file=file or "",
        line=line or 0,
        code="unknown-name",
        given=shown,
    )
