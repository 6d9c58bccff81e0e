"""What the processes of a spawning strategy counted, brought back to the process that started them.

With `ddp_spawn`, `ddp_fork` and `ddp_notebook` all of a fit happens in children. Lightning brings back the
weights and the metrics; what callbacks and the profiler have counted, the progress of the training, and the
errors that are meant for the user come through files of the first child.
"""

from __future__ import annotations

import os
import pickle
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch.callbacks import Callback

from ptycho_exec.errors import UserError
from ptycho_exec.files import atomic_path

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule, Trainer

STATES, ERROR = "states", "error-of-rank"


class Spawned(Callback):
    """Leaves in a child what the process that built the Trainer is to know; see `brought_back`."""

    def __init__(self) -> None:
        self.folder: Path | None = None
        self._builder = os.getpid()

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Keep an error for the user: Lightning calls `on_exception` in the process that waits, not here."""
        del pl_module, stage
        if self._in_child:
            run_stage = trainer._run_stage

            def run() -> Any:
                try:
                    return run_stage()
                except UserError as error:
                    self._leave(f"{ERROR}-{trainer.global_rank:06d}", error)
                    raise

            trainer._run_stage = run  # type: ignore[method-assign]

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        del pl_module, stage
        if self._in_child and trainer.is_global_zero:
            self._leave(STATES, _states(trainer))

    @property
    def _in_child(self) -> bool:
        return self.folder is not None and os.getpid() != self._builder

    def _leave(self, name: str, value: Any) -> None:
        with atomic_path(Path(str(self.folder)) / name) as temporary:
            temporary.write_bytes(pickle.dumps(value))


@contextmanager
def brought_back(trainer: Any) -> Iterator[None]:
    """Fit or predict inside; afterwards the Trainer is as it is in its first process.

    Callbacks and profiler have the attributes that they have there, as far as these can be pickled.

    Raises:
        UserError: what a child raised, in place of the error that says that a child failed.
    """
    callbacks = getattr(trainer, "callbacks", ())
    spawned = next((row for row in callbacks if isinstance(row, Spawned)), None)
    if spawned is None:
        yield
        return
    with tempfile.TemporaryDirectory(prefix="ptycho_exec_") as name:
        spawned.folder = Path(name)
        try:
            yield
        except Exception as error:
            for file in sorted(spawned.folder.glob(f"{ERROR}-*"))[:1]:
                raise pickle.loads(file.read_bytes()) from error
            raise
        finally:
            states, spawned.folder = spawned.folder / STATES, None
        if states.exists():
            _restore(trainer, pickle.loads(states.read_bytes()))


def _parts(trainer: Trainer) -> dict[str, Any]:
    """Return by name what parent and child both have: the Trainer and what belongs to it."""
    parts: dict[str, Any] = {"trainer": trainer, "strategy": trainer.strategy}
    parts |= {"module": trainer.lightning_module, "profiler": trainer.profiler}  # type: ignore[attr-defined]
    seen: Counter[str] = Counter()
    for part in (*trainer.callbacks, *trainer.loggers):  # type: ignore[attr-defined]
        kind = type(part).__qualname__
        parts[f"{kind} {seen[kind]}"] = part
        seen[kind] += 1
    return parts


def _states(trainer: Trainer) -> dict[str, Any]:
    """Return the training's progress, and each attribute of callbacks and profiler that can be pickled."""
    parts = _parts(trainer)
    names = {id(part): name for name, part in parts.items()}
    states = {}
    for name, part in parts.items():
        if name == "profiler" or (isinstance(part, Callback) and not isinstance(part, Spawned)):
            pairs = ((key, _pickled(value, names)) for key, value in vars(part).items())
            states[name] = {key: text for key, text in pairs if text is not None}
    return {"progress": trainer.fit_loop.state_dict(), "attributes": states}


def _restore(trainer: Trainer, states: Mapping[str, Any]) -> None:
    parts = _parts(trainer)
    for name, attributes in states["attributes"].items():
        if name in parts:
            for key, text in attributes.items():
                setattr(parts[name], key, _Unpickler(text, parts).load())
    trainer.fit_loop.load_state_dict(states["progress"])


def _pickled(value: Any, names: Mapping[int, str]) -> bytes | None:
    buffer = BytesIO()
    try:
        _Pickler(buffer, names).dump(value)
    except Exception:  # whatever a foreign object raises that cannot be pickled
        return None
    return buffer.getvalue()


class _Pickler(pickle.Pickler):
    """Writes the Trainer and its parts as their names, and tensors of any device as ones of the CPU."""

    def __init__(self, file: BytesIO, names: Mapping[int, str]) -> None:
        super().__init__(file)
        self._names = names

    def persistent_id(self, obj: Any) -> str | None:
        return self._names.get(id(obj))

    def reducer_override(self, obj: Any) -> Any:
        if isinstance(obj, torch.Tensor) and obj.device.type != "cpu":
            return torch.clone, (obj.detach().cpu(),)
        return NotImplemented


class _Unpickler(pickle.Unpickler):
    def __init__(self, text: bytes, parts: Mapping[str, Any]) -> None:
        super().__init__(BytesIO(text))
        self._parts = parts

    def persistent_load(self, pid: str) -> Any:
        return self._parts[pid]
