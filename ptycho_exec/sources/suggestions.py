"""Names that are nearly right: retired ones, misspelt ones, and what was meant."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache
from unicodedata import normalize

from ptycho_exec.errors import Finding
from ptycho_exec.fields.lightning_words import BROUGHT_PARAMETERS
from ptycho_exec.fields.model import TrainerTable
from ptycho_exec.sources.classes import spec_elsewhere

_LONGEST = 80

RETIRED = {
    "accumulate_grad_batches": "accum_steps",
    "accumulation_steps": "accum_steps",
    "batchsize": "batch_size",
    "checkpoint_callback": "enable_checkpointing",
    "checkpoint_metric": "checkpoint_monitor_metric",
    "clip": "gradient_clip_val",
    "clip_grad": "gradient_clip_val",
    "config": "settings_file",
    "config_file": "settings_file",
    "device": "accelerator",
    "distributed_backend": "strategy",
    "early_stopping_patience": "early_stop_patience",
    "eval_batch_size": "inference_batch_size",
    "gradient_accumulation_steps": "accum_steps",
    "gradient_clip_value": "gradient_clip_val",
    "file": "settings_file",
    "gpus": "devices",
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
    "num_processes": "devices",
    "patience": "early_stop_patience",
    "progress_bar": "enable_progress_bar",
    "random_seed": "seed",
    "save_top_k": "checkpoint_save_top_k",
    "settings": "settings_file",
    "settings_path": "settings_file",
    "workers": "num_workers",
}
"""Names of other programs and earlier versions, with ours."""


_FLAGS = {"settings_file": "settings"}
"""Controls whose flag has another name."""


def distance(a: str, b: str) -> int:
    """Edits between two words: insert, delete, replace, or swap neighbors (optimal string alignment)."""
    start = 0
    while start < min(len(a), len(b)) and a[start] == b[start]:
        start += 1
    end = 0
    while end < min(len(a), len(b)) - start and a[-1 - end] == b[-1 - end]:
        end += 1
    a, b = a[start : len(a) - end], b[start : len(b) - end]  # what both share costs nothing
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
    letters = _letters(bare)
    words = ((_bare(candidate), order, candidate) for order, candidate in enumerate(candidates))
    near = (
        (word, order, candidate)
        for word, order, candidate in words
        if abs(len(word) - len(bare)) <= allowed
        and (letters & ~_letters(word)).bit_count() <= allowed  # each of these needs an edit
        and (_letters(word) & ~letters).bit_count() <= allowed
    )
    scored = sorted((distance(bare, word), order, candidate) for word, order, candidate in near)
    allowed = min(allowed, scored[0][0] + 1) if scored else 0
    return [candidate for score, _, candidate in scored if score <= allowed][:most]


# Cyrillic and Greek letters that look like Latin ones, as a copied text or another keyboard layout has them.
_ALIKE = str.maketrans("авеікмнорстухѕјԁαεικνορτυχ", "abeikmhopctyxsjdaeiknoptux")


@lru_cache(maxsize=1024)
def _letters(word: str) -> int:
    """Return the set of a word's characters, one bit each; some share a bit."""
    bits = 0
    for letter in word:
        bits |= 1 << ord(letter) % 64
    return bits


@lru_cache(maxsize=1024)
def _bare(name: str) -> str:
    """Return a name in plain lower case, without the prefix of variables and the dashes of flags."""
    if not name.isascii():
        name = normalize("NFKC", name).lower().translate(_ALIKE)
    return name.lower().replace("-", "_").removeprefix("__").removeprefix("ptycho_exec_")


def _begun(bare: str, candidates: Iterable[str], most: int = 3) -> list[str]:
    """Return the candidates of which a name is the first words: `batch` of `batch_size`."""
    longer = [word for word in candidates if _bare(word).startswith(f"{bare}_")] if len(bare) > 2 else []
    return longer if len(longer) <= most else []


def _no_field(name: str, given: str, candidates: Sequence[str], noun: str, file: str) -> str:
    """Return what to do with a parameter of Lightning's Trainer that is no field; empty for another name."""
    if name in BROUGHT_PARAMETERS:
        return f"remove it (no setting: {BROUGHT_PARAMETERS[name]})"
    if name not in TrainerTable.model_fields:
        return ""
    variable = next((word for word in candidates if word.endswith(f"TRAINER__{name.upper()}")), "")
    if noun == "flag":
        place = f"--trainer {name}=..."
    elif given.isupper() and variable:
        place = variable
    elif file.endswith(".toml"):
        place = f"trainer.{name}"
    elif file.endswith((".json", ".yaml", ".yml")):
        place = "it below the name trainer"
    else:
        place = f'trainer={{"{name}": ...}}'
    return f"write {place} (a parameter of the Trainer without a field)"


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
    bare = _bare(name)
    close = nearest(name, candidates) or _begun(bare, candidates)
    shown = name if len(name) <= _LONGEST else f"{name[:_LONGEST]}... ({len(name)} characters)"
    quoted = f"{shown!a}, whose letters only look right" if close and not name.isascii() else repr(shown)
    if noun == "profile":
        ways = close[:1] or candidates
        write = f"write {' or '.join(ways)}, or " if ways else ""
        return Finding(
            f"unknown profile {quoted}",
            where=where,
            expected=" or ".join(close) or ", ".join(candidates) or "a profile of a settings file",
            fix=f"{write}define [profiles.{shown}]",
            file=file or "",
            line=line or 0,
            code="unknown-name",
        )
    meant = RETIRED.get(bare, "")
    renamed = next((word for word in candidates if meant and _bare(word) in (meant, _FLAGS.get(meant))), None)
    if renamed is not None:  # `device` may be another program's name of accelerator, or a misspelt devices
        close = [renamed, *(c for c in close if c != renamed and distance(bare, _bare(c)) == 1)]
    ours = bare in map(_bare, candidates)
    no_field = "" if ours else _no_field(bare, name, candidates, noun, file or "")
    owner = spec_elsewhere(bare) if noun == "setting" and renamed is None and not ours else None
    if owner is not None:
        close = [owner.variable if name.isupper() else owner.name]
    elif renamed is None and no_field:
        close = []
    listed = "--help" if noun == "flag" else "`ptycho-exec show`"
    all_of_them = ", ".join(candidates) if len(candidates) <= 12 else f"a {noun} listed by {listed}"
    if renamed is not None:
        fix = f"write {renamed} (its name here)"
    elif owner is not None:
        program = getattr(owner.model, "program", "")
        ways = f"set {owner.variable}, or write {owner.name} in {program}.toml"
        fix = f"remove it here and {ways} (it is a setting of {program})"
    elif no_field:
        fix = no_field
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


MOST_UNKNOWN = 100
"""Beyond so many unknown names in one place they are counted, not listed: it is no settings file."""


def more_unknown_names(count: int, where: str, file: str = "") -> Finding:
    """Return the finding about the unknown names that are not listed one by one."""
    return Finding(
        f"{count} more names there are unknown",
        where=where,
        expected="a place that holds settings",
        fix="remove them, or read another place",
        file=file,
        code="unknown-name",
    )
