"""What can be seen of a LightningModule and its loaders; torch.compile for one that does not do it itself."""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator, Mapping
from typing import Any

from ptycho_exec.plan import ModuleTraits
from ptycho_exec.trainer.caller import is_a
from ptycho_exec.trainer.parameters import UNKNOWN, attribute


def traits_of(module: Any, loaders: Mapping[str, Any] | None = None) -> ModuleTraits:
    """Return what a module, or its class, and the loaders show; what cannot be seen stays unknown.

    Args:
        module: a LightningModule or its class; None where there is none yet.
        loaders: DataLoaders by role; None where they are not known yet.
    """
    validates = module is None or _overrides(module, "validation_step")
    data = (loaders or {}).get("train")
    size = samples_per_batch(data)
    validation = [_batches(loader) for _, loader in each_loader("", (loaders or {}).get("validation"))]
    return ModuleTraits(
        automatic_optimization=_automatic(module),
        has_validation=validates and (loaders is None or any(length != 0 for length in validation)),
        train_samples=_length(getattr(data, "dataset", None)),
        train_batches=_batches(data),
        validation_batches=min((length for length in validation if length is not None), default=None),
        train_batch_size=size if type(size) is int else None,
        clips_gradients=None if module is None else _overrides(module, "configure_gradient_clipping"),
    )


def _automatic(module: Any) -> bool:
    """An instance decides it when it is made; of a class nobody knows, and Lightning's default is True."""
    made = module is not None and not inspect.isclass(module)
    return bool(getattr(module, "automatic_optimization", True)) if made else True


def _overrides(module: Any, hook: str) -> bool:
    """Return whether a class between the module's and Lightning's own defines the hook."""
    kind = module if inspect.isclass(module) else type(module)
    home = next((base for base in kind.__mro__ if hook in vars(base)), None)
    return hook in getattr(module, "__dict__", {}) or not str(
        getattr(home, "__module__", "lightning")
    ).startswith(("lightning.", "pytorch_lightning."))


def _length(data: Any) -> int | None:
    try:
        return len(data)
    except (TypeError, NotImplementedError):
        return None


def _batches(loader: Any) -> float | None:
    """Return the length of one loader, infinite where it has none; None for what is no loader."""
    if not hasattr(loader, "batch_size"):
        return None
    length = _length(loader)
    return math.inf if length is None else length


def samples_per_batch(loader: Any) -> Any:
    """Return the size of a loader's batches, of its batch sampler where it has one of its own."""
    size = attribute(loader, "batch_size")
    return attribute(attribute(loader, "batch_sampler"), "batch_size") if size in (None, UNKNOWN) else size


def each_loader(name: str, loader: Any) -> Iterator[tuple[str, Any]]:
    """Yield the loaders in a collection with their names; what is no loader in it is left out."""
    if is_a(loader, "CombinedLoader"):
        loader = loader.iterables
    if isinstance(loader, (list, tuple, Mapping)):
        parts = loader.items() if isinstance(loader, Mapping) else enumerate(loader)
        named = (row for key, part in parts for row in each_loader(f"{name}[{key}]", part))
        yield from (row for row in named if hasattr(row[1], "batch_size"))
    elif loader is not None:
        yield name, loader


def is_compiled(module: Any) -> bool:
    """Return whether torch.compile was applied to the module or to a part of it."""
    parts = list(module.modules())
    compiled = any(getattr(part, "_compiled_call_impl", None) is not None for part in parts)
    wrapped = any(type(part).__name__ == "OptimizedModule" for part in parts)
    return compiled or wrapped or getattr(module, "_compiler_ctx", None) is not None


def compile_network(module: Any) -> None:
    """Compile the parts of a module that hold weights, in place: names of weights stay as they are."""
    for part in _parts_with_weights(module):
        part.compile()


def _parts_with_weights(module: Any) -> Iterator[Any]:
    """Yield the outermost parts; containers that only hold others are looked into."""
    for part in module.children():
        if type(part).__name__ in ("ModuleList", "ModuleDict"):
            yield from _parts_with_weights(part)
        elif next(part.parameters(), None) is not None:
            yield part
