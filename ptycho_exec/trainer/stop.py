"""Leaving a run when a scheduler or a person asks for it, without losing a step.

A signal, Ctrl-C among them, only leaves word. After each optimizer step all processes look together whether
one of them got one, so that all leave after the same step; the checkpoint of that step is written first.
Before the first step there is nothing to save, and a process leaves at once; so it does at a second Ctrl-C.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from lightning.pytorch.callbacks import Callback
from torch.multiprocessing.spawn import ProcessExitedException, ProcessRaisedException
from torch.utils.data import get_worker_info

from ptycho_exec.interrupts import RESUME, Interrupted, leave
from ptycho_exec.machine.ranks import is_rank_zero
from ptycho_exec.trainer.together import company

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule, Trainer

_NAMES = ("SIGTERM", "SIGUSR2", "SIGUSR1")
SIGNALS = tuple(signal.Signals[name] for name in _NAMES if hasattr(signal, name))  # Windows has one of them
"""What ends a run; where processes got different ones, the later one here counts."""
CTRL_C = signal.SIGINT
EVERY = (CTRL_C, *SIGNALS)
REQUEUED = SIGNALS[1:]
"""What a scheduler sends ahead of its time limit, as `#SBATCH --signal=USR1@120` asks; ends as requeued."""
SCONTROL_LIMIT_S = 30
FIRST_LEAVES_S = 60
"""Longest wait of the other processes for the first one, which records and requeues."""


class Stopped(SystemExit):
    """A run that was asked to stop; its exit code is that of a program which the signal ended.

    Attributes:
        signal: what ended it.
        together: all processes of the run leave after the same step.
        requeues: how often a job may be requeued in all.
    """

    def __init__(
        self,
        received: signal.Signals,
        *,
        step: int | None = None,
        saved: Path | None = None,
        together: bool = False,
        requeues: int = 0,
        at_once: bool = False,
    ) -> None:
        super().__init__(128 + received)
        self.signal, self.together, self.requeues = received, together, requeues
        self._step, self._saved, self._at_once = step, saved, at_once

    @property
    def when(self) -> str:
        """After which step, in words that follow a verb."""
        if self._step is None:
            return " at once" if self._at_once else "" if self._saved else " before the first step"
        return f" after step {self._step}" if self._step or self._saved is None else ""

    @property
    def kept(self) -> str:
        """What was saved, in words; empty where nothing could have been."""
        if self._saved is not None:
            older = ", of an earlier step" if self._at_once else ""
            return f"the checkpoint is {self._saved}{older}"
        nothing = "nothing was saved, because this run writes no checkpoints"
        return "" if self._step is None else nothing

    def __str__(self) -> str:
        return "; ".join(filter(None, [f"asked to stop by {self.signal.name}{self.when}", self.kept]))


class _Watch:
    """The handlers of one run: they leave word, or end a run that has not begun.

    Attributes:
        signalled: by which signal, if by any.
        waits: the training loop runs, and looks for itself.
        trainer: whose processes get it too, where it started them by itself and waits for them.
        checkpoint: that of the run, once there can be one.
        as_command: Ctrl-C ends a command, not the caller's program.
    """

    def __init__(self, interrupts: bool = False) -> None:
        self.checkpoint: Path | None = None
        self.as_command = signal.getsignal(CTRL_C) is leave
        self._numbers = EVERY if interrupts else SIGNALS
        self.signalled: signal.Signals | None = None
        self.waits = False
        self.trainer: Trainer | None = None
        self._before: dict[signal.Signals, Any] = {}

    def install(self) -> None:
        for number in self._numbers:
            before = signal.getsignal(number)
            ours = number is not CTRL_C or before in (leave, signal.default_int_handler)
            if (
                ours
                and before is not signal.SIG_IGN
                and not isinstance(getattr(before, "__self__", None), _Watch)
            ):
                self._before[number] = signal.signal(number, self.leave_word)

    def restore(self) -> None:
        for number, before in self._before.items():
            signal.signal(number, before if before is not None else signal.SIG_DFL)
        self._before = {}

    def leave_word(self, number: int, frame: Any) -> None:
        if number == CTRL_C and get_worker_info() is not None:
            return  # a terminal sends it to all processes; loaders go on until their training ends
        again = number == CTRL_C and self.signalled is CTRL_C
        first, self.signalled = self.signalled is None, self.signalled or signal.Signals(number)
        children = [] if self.trainer is None else _spawned(self.trainer)
        for child in children:
            with suppress(OSError):
                child.kill() if again else os.kill(child.pid, number)
        before = self._before.get(signal.Signals(number))
        if callable(before) and number != CTRL_C:
            before(number, frame)
        if again and multiprocessing.parent_process() is None:
            raise Stopped(CTRL_C, saved=self.saved(), at_once=True)
        if first and not self.waits and not children:
            raise Stopped(self.signalled, saved=self.saved())

    def saved(self) -> Path | None:
        """Return the last checkpoint of the run, if there is one."""
        return self.checkpoint if self.checkpoint is not None and self.checkpoint.exists() else None


_watch: _Watch | None = None


def _begin(*, interrupts: bool = False) -> _Watch | None:
    """Install the handlers; nothing where they are already, or in a thread, which can have none."""
    global _watch
    if _watch is not None or threading.current_thread() is not threading.main_thread():
        return None
    _watch = _Watch(interrupts)
    _watch.install()
    return _watch


def _end(watch: _Watch | None) -> None:
    global _watch
    if watch is not None:
        watch.restore()
        _watch = None


@contextmanager
def leaving_in_order(*, requeue: bool = True, again: str = RESUME) -> Iterator[None]:
    """Let signals stop the run inside in order, and requeue its job at the very end if they ask for that.

    Args:
        requeue: the job's command, started again as it is, continues the run.
        again: how the user continues, a sentence.

    Raises:
        Stopped: a signal asked for it. Interrupted, KeyboardInterrupt: Ctrl-C did, in a command or elsewhere.
    """
    watch = _begin(interrupts=True)
    if watch is None:
        yield
        return
    try:
        yield
    except Stopped as stop:
        _leave(stop, requeue, again)
        if stop.signal is not CTRL_C:
            raise
        ended = Interrupted(stop.when, "; ".join(filter(None, [stop.kept, again])))
        if watch.as_command:
            raise ended from None
        raise KeyboardInterrupt(str(ended)) from None
    finally:
        _end(watch)


@contextmanager
def stoppable(trainer: Any) -> Iterator[None]:
    """Let signals reach the processes that this Trainer starts with multiprocessing and waits for."""
    with leaving_in_order():
        watch = _watch
        if watch is None:
            yield
            return
        watch.trainer = trainer
        try:
            yield
        except (ProcessExitedException, ProcessRaisedException) as error:
            received = watch.signalled or _signal_of(error)
            if received is None:
                raise
            stops = [row for row in getattr(trainer, "callbacks", ()) if isinstance(row, StopAtStep)]
            path = next((row.path for row in stops if row.path is not None), None)
            saved = path if path is not None and path.exists() else None
            raise Stopped(received, saved=saved, requeues=stops[0].requeues if stops else 0) from error
        finally:
            watch.trainer = None


def _signal_of(error: Exception) -> signal.Signals | None:
    """Return the signal of a process that ended in the way of `Stopped`."""
    codes = {128 + number: number for number in EVERY}
    return codes.get(getattr(error, "exit_code", 0))


def _spawned(trainer: Trainer) -> list[Any]:
    """Return the living processes that Lightning started with multiprocessing."""
    processes = getattr(trainer.strategy.launcher, "procs", ())
    return [process for process in processes if hasattr(process, "is_alive") and process.is_alive()]


def _leave(stop: Stopped, requeue: bool, again: str) -> None:
    """Say that the run stops, and requeue; the others stay until then, or srun and torchrun would end all."""
    found, key = company(), "ptycho/first-leaves"
    if not is_rank_zero():
        if stop.together and found is not None:
            with suppress(Exception):
                found.store.wait([key], timedelta(seconds=FIRST_LEAVES_S))
        return
    if stop.signal is not CTRL_C:
        print(stop, file=sys.stderr)
    if stop.signal in REQUEUED and "SLURM_JOB_ID" in os.environ:
        print(requeue_job(os.environ, stop.requeues if requeue else None), file=sys.stderr)
    if stop.signal is not CTRL_C:
        print(again, file=sys.stderr)
    sys.stderr.flush()
    if found is not None:
        with suppress(Exception):
            found.store.set(key, "1")


def requeue_job(environ: Mapping[str, str], allowed: int | None) -> str:
    """Requeue this SLURM job unless it was often enough, and return one line that says so.

    Args:
        allowed: times in all; None where the command would not continue.
    """
    job = environ["SLURM_JOB_ID"]
    if "SLURM_ARRAY_JOB_ID" in environ:
        job = f"{environ['SLURM_ARRAY_JOB_ID']}_{environ.get('SLURM_ARRAY_TASK_ID', '')}"
    count = int(environ.get("SLURM_RESTART_COUNT") or 0)
    if allowed is None:
        return f"job {job} is not requeued: its command, as it is, would not continue"
    if count >= allowed:
        return f"job {job} is not requeued: it was {count} times, and max_requeues={allowed}"
    by_hand = f"type `scontrol requeue {job}` where it is, or submit the job again"
    try:
        subprocess.run(
            ["scontrol", "requeue", job], capture_output=True, text=True, timeout=SCONTROL_LIMIT_S, check=True
        )
    except FileNotFoundError:
        return f"job {job} is not requeued: no scontrol on the PATH here; {by_hand}"
    except subprocess.CalledProcessError as error:
        return f"job {job} is not requeued: scontrol says {error.stderr.strip()!r}; {by_hand}"
    except subprocess.TimeoutExpired:
        return f"job {job} is perhaps not requeued: scontrol did not answer; {by_hand}"
    return f"job {job} is requeued, for the {count + 1}. of at most {allowed} times"


class StopAtStep(Callback):
    """Leave after an optimizer step when any process of the run got a signal.

    Attributes:
        path: the checkpoint that is written first; None for a run that writes none.
        requeues: how often the job may be requeued in all.
    """

    path: Path | None = None

    def __init__(self, requeues: int = 0) -> None:
        self.requeues = requeues
        self._began_in: int | None = None
        self._group: Any = None
        self._seen_step = 0

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Keep Lightning's handlers out: they start collectives in the middle of a step."""
        del pl_module, stage
        child = multiprocessing.parent_process() is not None
        self._began_in = None if _begin(interrupts=child) is None else os.getpid()
        connector: Any = trainer._signal_connector
        connector.register_signal_handlers = _nothing
        loop: Any = trainer.fit_loop.epoch_loop
        loop._broadcast_sigterm_tensor = _nothing

    def on_train_start(self, trainer: Trainer, *_: Any) -> None:
        self._seen_step = trainer.global_step
        if trainer.world_size > 1 and dist.is_initialized() and dist.get_backend() != "gloo":
            self._group = dist.new_group(backend="gloo")  # looking at a flag must not wait for the GPU
        if _watch is not None:
            _watch.waits, _watch.checkpoint = True, self.path

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        if self.stepped(trainer) and (received := self.signalled(trainer)):
            self.stop(trainer, received)

    def on_train_epoch_end(self, trainer: Trainer, *_: Any) -> None:
        if not self.ends(trainer) and (received := self.signalled(trainer, epoch_ended=True)):
            self.stop(trainer, received)

    def stepped(self, trainer: Trainer) -> bool:
        """Return whether the run can stop here: an optimizer step ended, and the epoch goes on after it.

        What follows the last step of an epoch, such as validation, belongs to the epoch and is done first.
        """
        stepped, self._seen_step = trainer.global_step != self._seen_step, trainer.global_step
        return stepped and not trainer.fit_loop.epoch_loop._is_training_done and not trainer.should_stop

    def ends(self, trainer: Trainer) -> bool:
        """Return whether the training ends with this epoch anyway."""
        limit, steps = trainer.max_epochs, trainer.max_steps
        last = limit is not None and 0 <= limit <= trainer.current_epoch + 1
        return last or trainer.should_stop or 0 <= steps <= trainer.global_step

    def signalled(self, trainer: Trainer, *, epoch_ended: bool = False) -> signal.Signals | None:
        """Return the signal that any process got, the same on all of them; not ahead of a validation.

        A run that goes on after the step ahead of a validation leaves that out.
        """
        loop: Any = trainer.fit_loop
        validates = not epoch_ended and loop.epoch_loop._should_check_val_fx(loop._data_fetcher)
        received = None if _watch is None else _watch.signalled
        number = 0 if received is None else 1 + EVERY.index(received)
        if trainer.world_size > 1 and dist.is_initialized():
            agreed = torch.tensor(number)
            dist.all_reduce(agreed, dist.ReduceOp.MAX, group=self._group)
            number = int(agreed)
        return EVERY[number - 1] if number and not validates else None

    def stop(self, trainer: Trainer, received: signal.Signals) -> None:
        """Leave the run.

        Raises:
            Stopped: always.
        """
        raise Stopped(
            received, step=trainer.global_step, saved=self.path, together=True, requeues=self.requeues
        )

    def on_train_end(self, *_: Any) -> None:
        if _watch is not None:
            _watch.waits = False

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        del trainer, pl_module, exception
        self._finish()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        del trainer, pl_module, stage
        self._finish()

    def _finish(self) -> None:
        if self._began_in == os.getpid():
            _end(_watch)
        self._began_in = None


def _nothing() -> None:
    """Stand in for a part of Lightning that must not act."""
