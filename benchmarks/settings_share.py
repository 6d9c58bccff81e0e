"""The settings layer's part of a run: a real `ptycho-torch train`, with all of the layer timed inside it.

Timed are the import of the layer, the resolution of the settings, the machine's facts, the plan, the
arguments of Trainer and loaders, the reading back and comparing, the manifest, and our callbacks at every
step; what is called inside another counts once. Callbacks grow with the run and are scaled to a minute.

    python benchmarks/settings_share.py [--seconds 60]
"""

from __future__ import annotations

import contextlib
import functools
import io
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import common

from ptycho_exec import plan, record
from ptycho_exec.machine import facts
from ptycho_exec.sources import resolve as sources
from ptycho_exec.trainer import build as facade
from ptycho_exec.trainer import progress, readback, resume
from ptycho_torch import cli
from ptycho_torch.workflows import runs

LIMIT = 0.01
"""Of a run of one minute, the settings layer is to take at most this part."""
TIMED: dict[str, tuple[tuple[Any, tuple[str, ...]], ...]] = {
    "resolving": ((sources, ("resolve", "resolve_values", "resolve_onto", "resolve_under", "check")),),
    "machine facts": ((facts.MachineFacts, ("probe",)),),
    "plan": ((plan, ("resolve_plan",)),),
    "Trainer and loader arguments": (
        (facade, ("trainer_kwargs", "train_loader_kwargs", "inference_loader_kwargs")),
    ),
    "reading back": ((facade, ("requested_and_effective",)),),
    "manifest": ((record, ("manifest_parts", "write_manifest", "write_settings_toml", "new_run_dir")),),
    "callbacks": tuple(
        (kind, tuple(name for name in vars(kind) if name.startswith("on_")))
        for kind in (readback.ReadBack, resume.Continuity, progress.Throughput)
    ),
}


class Meter:
    """Seconds by name; a timed call inside another one counts for the outer one."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._busy = False

    def timing(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(call)
        def timed(*args: Any, **kwargs: Any) -> Any:
            if self._busy:
                return call(*args, **kwargs)
            self._busy, start = True, time.perf_counter()
            try:
                return call(*args, **kwargs)
            finally:
                self._busy = False
                self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start

        return timed


@contextlib.contextmanager
def measured() -> Iterator[Meter]:
    """Replace the timed functions wherever they were imported to, for the time of the block."""
    meter = Meter()
    with contextlib.ExitStack() as undo:
        for name, owners in TIMED.items():
            for owner, functions in owners:
                for function in functions:
                    if function in vars(owner):
                        _replace(owner, function, meter, name, undo)
        yield meter


def _replace(owner: Any, function: str, meter: Meter, name: str, undo: contextlib.ExitStack) -> None:
    if isinstance(owner, type):
        bound = vars(owner)[function]
        if isinstance(bound, classmethod):
            undo.enter_context(patch.object(owner, function, classmethod(meter.timing(name, bound.__func__))))
        else:
            undo.enter_context(patch.object(owner, function, meter.timing(name, bound)))
        return
    original = getattr(owner, function)
    timed = meter.timing(name, original)
    for module in [m for key, m in sys.modules.items() if key.startswith(("ptycho_exec", "ptycho_torch"))]:
        if vars(module).get(function) is original:
            undo.enter_context(patch.object(module, function, timed))


def import_seconds(rounds: int) -> float:
    """Return the processor seconds of importing the layer with its flags, less those of an empty Python."""
    codes = ("import ptycho_exec.cli.commands, ptycho_exec.cli.flags", "pass")
    taken = [
        [common.run([sys.executable, "-c", code]).check().cpu_s for code in codes] for _ in range(rounds)
    ]
    return common.spread(layer - empty for layer, empty in taken).median


def train(scan: Path, out: Path, seconds: int) -> tuple[Meter, float]:
    """Train for about `seconds` as the command does; return what was metered, and the wall seconds of all."""
    limit = f"00:00:{seconds // 60:02}:{seconds % 60:02}"
    words = ["train", str(scan), "--out", str(out), "--epochs=100000", f"--max-time={limit}"]
    assert runs  # imported before the clock starts, as its seconds are torch's and Lightning's
    start = time.perf_counter()
    with measured() as meter, contextlib.redirect_stdout(io.StringIO()) as said:
        code = cli.main(words)
    if code:
        raise SystemExit(f"the measured run failed:\n{said.getvalue()[-3000:]}")
    return meter, time.perf_counter() - start


def main() -> int:
    parser = common.arguments(__doc__)
    parser.add_argument("--seconds", type=int, default=20, help="of training [20]; the limit is for 60")
    space = parser.parse_args()
    common.print_machine()
    with tempfile.TemporaryDirectory(prefix="settings_share_") as name:
        folder = Path(name)
        meter, wall = train(common.scan_file(space.scan, folder), folder / "run", space.seconds)
    found = {"import": import_seconds(space.rounds), **meter.seconds}
    minute = {**found, "callbacks": found.get("callbacks", 0.0) * 60 / wall}
    rows = [(part, f"{found[part]:.4f}", f"{100 * minute[part] / 60:.3f}") for part in found]
    common.print_table(("part of the settings layer", "seconds", "% of a minute"), rows)
    share = sum(minute.values()) / 60
    print(f"{wall:.1f} s measured; of a run of one minute the layer takes {100 * share:.2f} %")
    print("within the limit of 1 %" if share <= LIMIT else "over the limit of 1 %")
    common.write_json("settings_share", {"seconds": found, "run_s": wall, "share": share}, space.json)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
