"""Each knob where it acts, in real runs: what the Trainer, the optimizer, the loaders and the stitching do.

Knobs that the tests of single modules already watch in a real Trainer are not repeated here; `tables.py`
says which test watches which field.
"""

from __future__ import annotations

import math
import multiprocessing
import os
import shutil
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset, TensorDataset

from ptycho_exec import ExecutionSettings
from ptycho_exec.errors import DataError, SettingsError, SettingsWarning
from ptycho_exec.machine.facts import Gpu, Launcher, MachineFacts
from ptycho_exec.plan import resolve_plan
from ptycho_exec.trainer.build import (
    build_trainer,
    inference_loader_kwargs,
    process_flags,
    seed_run,
    train_loader_kwargs,
)
from ptycho_torch.config import DataConfig, ModelConfig, ScienceConfig, TrainingConfig
from ptycho_torch.data.scan import ScanData
from ptycho_torch.simulate import simulate_scan
from ptycho_torch.workflows.components import _train_with_lightning, run_inference_with_lightning

# Several of these runs ask for what the plan remarks on.
pytestmark = pytest.mark.filterwarnings("ignore::ptycho_exec.errors.SettingsWarning")

CPU = MachineFacts(cpus_logical=8, compiler="g++")
GPU = MachineFacts(cpus_logical=8, gpus=(Gpu(name="A100", memory_mb=1, capability="8.0", bf16=True),))
PATTERNS = 48


def settings(**values: object) -> ExecutionSettings:
    base = {"logger_backend": None, "enable_progress_bar": False, "batch_size": 8}
    return ExecutionSettings.from_values({**base, **values})


@pytest.fixture(scope="module")
def scan() -> ScanData:
    return simulate_scan(n=32, patterns=PATTERNS, photons=1e5, seed=3)


def science(epochs: int = 1, **training: Any) -> ScienceConfig:
    return ScienceConfig(
        data=DataConfig(N=32),
        model=ModelConfig(n_filters=4, depth=1, intensity_scale_trainable=False),
        training=TrainingConfig(epochs=epochs, **training),
    )


@pytest.fixture
def watch(monkeypatch: pytest.MonkeyPatch) -> Callable[[pl.Callback], None]:
    """Put an observer into every real Trainer that is built."""

    def add(observer: pl.Callback) -> None:
        class Watched(pl.Trainer):
            def __init__(self, **kwargs: Any) -> None:
                super().__init__(**{**kwargs, "callbacks": [*kwargs["callbacks"], observer]})

        monkeypatch.setattr("lightning.pytorch.Trainer", Watched)

    return add


Watch = Callable[[pl.Callback], None]


class Tiny(pl.LightningModule):
    """A linear layer that logs what the real module logs; a step can be made to take its time."""

    def __init__(self, seconds: float = 0.0) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)
        self.seconds = seconds

    def training_step(self, batch: Any, index: int) -> torch.Tensor:
        time.sleep(self.seconds)
        loss: torch.Tensor = self.layer(batch[0]).pow(2).mean()
        self.log_dict({"train_loss": loss, "val_loss": loss}, on_step=False, on_epoch=True, sync_dist=True)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=1e-3)


def fit_tiny(
    wanted: ExecutionSettings, *callbacks: pl.Callback, facts: MachineFacts = CPU, seconds: float = 0.0
) -> pl.Trainer:
    """Train `Tiny` on 16 samples for at most four epochs."""
    plan = resolve_plan(wanted, facts)
    with process_flags(plan.settings):
        seed_run(plan.settings)
        trainer = build_trainer(wanted, max_epochs=4, plan=plan, announce=False, callbacks=callbacks)
        trainer.fit(
            Tiny(seconds), DataLoader(TensorDataset(torch.ones(16, 1)), **train_loader_kwargs(wanted, plan))
        )
    return trainer


# --- where it computes ----------------------------------------------------------------------------------


@pytest.mark.acts("accelerator", "the device that holds the weights, on a machine with a GPU too")
def test_the_cpu_computes_when_asked_also_beside_a_gpu() -> None:
    trainer = fit_tiny(settings(accelerator="cpu"), facts=GPU)
    assert trainer.strategy.root_device.type == "cpu"


class RankFiles(pl.Callback):
    """Each process leaves a file that says who it is."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        (self.folder / f"rank{trainer.global_rank}of{trainer.world_size}").touch()


@pytest.fixture
def own_group(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Leave neither a process group nor its variables behind."""
    names = ("MASTER_ADDR", "MASTER_PORT", "NODE_RANK", "LOCAL_RANK", "WORLD_SIZE", "RANK")
    before = {name: os.environ.get(name) for name in names}
    yield
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    for name, value in before.items():
        os.environ.pop(name, None)
        if value is not None:
            os.environ[name] = value


@pytest.mark.acts("devices", "the number of processes that train, each leaving a file")
@pytest.mark.usefixtures("own_group")
def test_devices_is_the_number_of_processes_that_train(tmp_path: Path) -> None:
    fit_tiny(settings(accelerator="cpu", devices=2, strategy="ddp_fork"), RankFiles(tmp_path))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["rank0of2", "rank1of2"]


@pytest.mark.acts("strategy", "what the module is wrapped in during fit")
@pytest.mark.usefixtures("own_group")
def test_strategy_wraps_the_module_as_asked() -> None:
    found: dict[str, Any] = {}

    class Look(pl.Callback):
        def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
            found["kind"] = type(trainer.strategy).__name__
            found["unused"] = getattr(trainer.strategy.model, "find_unused_parameters", None)

    fit_tiny(settings(accelerator="cpu", strategy="ddp_find_unused_parameters_true"), Look())
    assert found == {"kind": "DDPStrategy", "unused": True}


@pytest.mark.acts("num_nodes", "the world size of the Trainer under a launcher with two nodes")
def test_num_nodes_makes_the_world_larger(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("TORCHELASTIC_RUN_ID", "RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_RANK"):
        monkeypatch.setenv(name, {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "1"}.get(name, "0"))
    facts = CPU.model_copy(
        update={"launcher": Launcher(kind="torchrun", world_size=2, tasks_per_node=1, nodes=2)}
    )
    wanted = settings(accelerator="cpu", num_nodes=2)
    with process_flags(wanted):
        trainer = build_trainer(wanted, max_epochs=1, plan=resolve_plan(wanted, facts))
    assert (trainer.num_nodes, trainer.world_size) == (2, 2)


@pytest.mark.acts("num_threads", "torch's number of threads inside a training step")
def test_num_threads_acts_inside_fit() -> None:
    found = []

    class Look(pl.Callback):
        def on_train_batch_start(self, *where: Any) -> None:
            found.append(torch.get_num_threads())

    more = torch.get_num_threads() + 1
    fit_tiny(settings(num_threads=more), Look())
    assert set(found) == {more}


@pytest.mark.acts("benchmark", "cuDNN's flag inside fit")
def test_benchmark_reaches_cudnn() -> None:
    found = []

    class Look(pl.Callback):
        def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
            found.append(torch.backends.cudnn.benchmark)

    wanted = settings(benchmark=True, deterministic=False, pin_memory=False)
    plan = resolve_plan(wanted, GPU)
    with process_flags(plan.settings):
        trainer = build_trainer(wanted, max_epochs=1, plan=on_the_cpu(plan), callbacks=(Look(),))
        trainer.fit(Tiny(), DataLoader(TensorDataset(torch.ones(4, 1)), batch_size=8))
    assert found == [True]


def on_the_cpu(plan: Any) -> Any:
    """A plan made for a machine with a GPU, to be carried out here."""
    from dataclasses import replace
    from types import MappingProxyType

    row = replace(plan.effective["accelerator"], value="cpu")
    return replace(plan, effective=MappingProxyType({**plan.effective, "accelerator": row}))


class Forward(pl.Callback):
    """Whether the network is compiled, and in which precision it answers."""

    def __init__(self) -> None:
        self.compiled: bool | None = None
        self.dtypes: set[torch.dtype] = set()

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        self.compiled = pl_module.network.unet._compiled_call_impl is not None
        pl_module.network.unet.head.register_forward_hook(lambda _m, _i, out: self.dtypes.add(out.dtype))


@pytest.mark.acts("compile", "whether the network's call is compiled in fit", ["True"])
@pytest.mark.parametrize("asked", [True, False])
def test_compile_reaches_the_network(
    scan: ScanData, watch: Watch, asked: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    monkeypatch.setenv("CXX", sys.executable)  # any program: nothing is compiled here
    seen = Forward()
    watch(seen)
    _train_with_lightning(scan, None, science(), settings(compile=asked))
    assert seen.compiled is asked


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on a CPU")
def test_a_compiled_network_computes_the_same_numbers(scan: ScanData) -> None:
    states = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what torch's compiler says about itself
        for asked in (False, True):
            wanted = settings(compile=asked, limit_train_batches=2)
            states.append(_train_with_lightning(scan, None, science(), wanted)["models"]["lightning_module"])
    for plain, compiled in zip(*(module.parameters() for module in states), strict=True):
        torch.testing.assert_close(compiled, plain, rtol=1e-4, atol=1e-4)


@pytest.mark.acts("precision", "dtype of the network's output in a forward hook", ["bf16-mixed-dtype1"])
@pytest.mark.parametrize(("word", "dtype"), [("32-true", torch.float32), ("bf16-mixed", torch.bfloat16)])
def test_precision_is_the_dtype_of_the_network(
    scan: ScanData, watch: Watch, word: str, dtype: torch.dtype
) -> None:
    seen = Forward()
    watch(seen)
    _train_with_lightning(scan, None, science(), settings(precision=word))
    assert seen.dtypes == {dtype}


# --- how it optimizes -----------------------------------------------------------------------------------


class Steps(pl.Callback):
    """Rate of each optimizer step, and the gradients before and after clipping, one tensor per weight."""

    def __init__(self) -> None:
        self.rates: list[float] = []
        self.weights: list[list[torch.Tensor]] = []
        self.raw: list[list[torch.Tensor]] = []
        self.clipped: list[list[torch.Tensor]] = []

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        self.rates.append(optimizer.param_groups[0]["lr"])
        weights = self._trained(pl_module)
        self.weights.append([weight.detach().clone() for weight in weights])
        self.raw.append([weight.grad.clone() for weight in weights])

    def on_before_zero_grad(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        weights = self._trained(pl_module)
        if len(self.clipped) < len(self.raw) and all(weight.grad is not None for weight in weights):
            self.clipped.append([weight.grad.clone() for weight in weights])

    def _trained(self, module: Any) -> list[Any]:
        return [weight for weight in module.network.unet.stem.parameters() if weight.requires_grad]


RATE, EPOCHS = 2e-3, 9
TOTAL = EPOCHS * PATTERNS // 8
WARMUP = min(math.ceil(2000 / 8), TOTAL // 10)
BY_STEP: dict[str, Callable[[int], float]] = {
    "Default": lambda t: 1.0,
    "Exponential": lambda t: math.exp(math.log(0.01) * t / TOTAL),
    "WarmupCosine": lambda t: (
        (t + 1) / WARMUP if t < WARMUP else (1 + math.cos(math.pi * (t - WARMUP) / (TOTAL - WARMUP))) / 2
    ),
    "MultiStage": lambda t: 0.3 ** sum(t / TOTAL >= part for part in (0.5, 0.75, 0.9)),
}


def plateau(metrics: list[float], sign: float) -> Iterator[float]:
    """Halve after more than five epochs in a row that did not improve by a thousandth."""
    best, bad, factor = math.inf, 0, 1.0
    for metric in metrics:
        yield factor
        value = sign * metric
        better = value < best - 1e-3 * abs(best) if math.isfinite(best) else True
        best, bad = (value, 0) if better else (best, bad + 1)
        if bad > 5:
            factor, bad = max(factor / 2, 0.01), 0


def bold_driver(metrics: list[float], sign: float) -> Iterator[float]:
    best, factor = math.inf, 1.0
    for metric in metrics:
        yield factor
        factor = min(max(factor * (1.05 if sign * metric < best else 0.7), 0.01), 2.0)
        best = min(best, sign * metric)


@pytest.mark.acts("learning_rate", "rate of every optimizer step", ["Default"])
@pytest.mark.acts(
    "scheduler",
    "rate of every optimizer step against the schedule's formula",
    ["Exponential", "WarmupCosine", "MultiStage"],
)
@pytest.mark.parametrize("name", BY_STEP)
def test_the_rate_of_every_step_follows_the_formula(scan: ScanData, watch: Watch, name: str) -> None:
    seen = Steps()
    watch(seen)
    _train_with_lightning(scan, None, science(EPOCHS), settings(scheduler=name, learning_rate=RATE))
    assert seen.rates == pytest.approx([RATE * BY_STEP[name](t) for t in range(TOTAL)], rel=1e-6)


@pytest.mark.acts(
    "scheduler",
    "rate of every optimizer step against the schedule's formula",
    ["max-val_loss-ReduceLROnPlateau-plateau", "min-train_loss-Adaptive-bold_driver"],
)
@pytest.mark.acts(
    "checkpoint_monitor_metric",
    "metric that ranks checkpoints and drives metric-driven schedules",
    ["min-train_loss-Adaptive-bold_driver"],
)
@pytest.mark.parametrize(("name", "formula"), [("ReduceLROnPlateau", plateau), ("Adaptive", bold_driver)])
@pytest.mark.parametrize("monitor", ["train_loss", "val_loss"])
@pytest.mark.parametrize("mode", ["min", "max"])
@pytest.mark.filterwarnings("ignore:checkpoint_mode=max keeps")
def test_the_rate_follows_the_monitored_metric(
    scan: ScanData, watch: Watch, name: str, formula: Any, monitor: str, mode: str
) -> None:
    seen = Steps()
    watch(seen)
    wanted = settings(
        scheduler=name,
        learning_rate=RATE,
        checkpoint_monitor_metric=monitor,
        checkpoint_mode=mode,
        batch_size=24,
    )
    made = _train_with_lightning(scan, scan, science(EPOCHS), wanted)
    factors = list(formula(made["history"][monitor], 1.0 if mode == "min" else -1.0))
    assert len(set(factors)) > 1 or mode == "min"
    assert seen.rates == pytest.approx([RATE * factor for factor in factors for _ in range(2)], rel=1e-6)


@pytest.mark.acts(
    "accum_steps", "optimizer steps per epoch; the accumulated gradient is that of one large batch"
)
def test_accumulated_gradients_are_those_of_one_large_batch(scan: ScanData, watch: Watch) -> None:
    gradients = []
    for size, accumulated in ((8, 6), (48, 1)):
        seen = Steps()
        watch(seen)
        _train_with_lightning(scan, None, science(), settings(batch_size=size, accum_steps=accumulated))
        (only,) = seen.raw
        gradients.append(torch.cat([grad.flatten() for grad in only]))
    small, large = gradients
    assert float((small - large).abs().max()) <= 1e-5 * float(large.abs().max())


def by_value(grads: list[torch.Tensor], limit: float) -> list[torch.Tensor]:
    return [grad.clamp(-limit, limit) for grad in grads]


def by_unit(grads: list[torch.Tensor], weights: list[torch.Tensor], limit: float) -> list[torch.Tensor]:
    """Adaptive clipping, arXiv:2102.06171 eq. 3, unit by unit in a plain loop."""
    clipped = []
    for grad, weight in zip(grads, weights, strict=True):
        rows = []
        for g, w in zip(grad.reshape(len(grad), -1), weight.reshape(len(weight), -1), strict=True):
            most = limit * max(float(w.norm()), 1e-3)
            rows.append(g * min(1.0, most / max(float(g.norm()), 1e-12)))
        clipped.append(torch.stack(rows).reshape(grad.shape))
    return clipped


@pytest.mark.acts(
    "gradient_clip_algorithm",
    "clipped gradients against the formula of the paper",
    ["value-1e-06", "agc-0.001"],
)
@pytest.mark.parametrize(("algorithm", "limit"), [("value", 1e-6), ("agc", 1e-3)])
def test_the_clipped_gradient_is_that_of_the_paper(
    scan: ScanData, watch: Watch, algorithm: str, limit: float
) -> None:
    seen = Steps()
    watch(seen)
    wanted = settings(gradient_clip_val=limit, gradient_clip_algorithm=algorithm)
    _train_with_lightning(scan, None, science(), wanted)
    assert len(seen.clipped) == PATTERNS // 8 - 1
    for raw, weights, found in zip(seen.raw, seen.weights, seen.clipped, strict=False):
        wanted_grads = by_value(raw, limit) if algorithm == "value" else by_unit(raw, weights, limit)
        assert any(not torch.equal(one, other) for one, other in zip(raw, found, strict=True))
        torch.testing.assert_close(found, wanted_grads, rtol=1e-5, atol=1e-9)


@pytest.mark.acts("gradient_clip_val", "gradients before and after clipping")
def test_clipping_by_norm_scales_all_gradients_alike(scan: ScanData, watch: Watch) -> None:
    seen, limit = Steps(), 1e-3
    watch(seen)
    _train_with_lightning(scan, None, science(), settings(gradient_clip_val=limit))
    for raw, found in zip(seen.raw, seen.clipped, strict=False):
        before, after = (torch.cat([grad.flatten() for grad in grads]) for grads in (raw, found))
        scale = float(after.norm() / before.norm())
        assert scale < 0.5
        torch.testing.assert_close(after, before * scale, rtol=1e-4, atol=1e-9)


@pytest.mark.acts("max_time", "epochs trained")
def test_max_time_stops_before_the_last_epoch() -> None:
    trainer = fit_tiny(settings(max_time="00:00:00:01"), seconds=0.4)
    assert trainer.current_epoch < 4


# --- loaders ----------------------------------------------------------------------------------------------


@pytest.mark.acts("pin_memory", "a loader for a machine with a GPU")
def test_pinning_is_off_where_a_gpu_would_turn_it_on() -> None:
    asked, usual = settings(pin_memory=False), settings()
    loaders = [
        DataLoader(TensorDataset(torch.ones(2)), **train_loader_kwargs(row, resolve_plan(row, GPU)))
        for row in (asked, usual)
    ]
    assert [loader.pin_memory for loader in loaders] == [False, True]


class WhoLoads(Dataset[Any]):
    """Each sample is the number of the process that loaded it; counts what was loaded."""

    def __init__(self) -> None:
        self.loaded = multiprocessing.get_context("fork").Value("i", 0)

    def __len__(self) -> int:
        return 64

    def __getitem__(self, index: int) -> int:
        with self.loaded.get_lock():
            self.loaded.value += 1
        return os.getpid()


@pytest.mark.acts("num_workers", "processes that load the samples", ["True"])
@pytest.mark.acts("persistent_workers", "process numbers of the workers over three epochs", ["True"])
@pytest.mark.parametrize("persistent", [True, False])
def test_persistent_workers_live_through_all_epochs(persistent: bool) -> None:
    wanted = settings(num_workers=2, persistent_workers=persistent)
    loader = DataLoader(WhoLoads(), **train_loader_kwargs(wanted, resolve_plan(wanted, CPU)))
    epochs = [set(torch.cat(list(loader)).tolist()) for _ in range(3)]
    assert all(len(processes) == 2 and os.getpid() not in processes for processes in epochs)
    assert (epochs[0] == epochs[1] == epochs[2]) is persistent


@pytest.mark.acts("prefetch_factor", "samples loaded before they are asked for")
def test_prefetch_factor_is_the_number_of_batches_loaded_ahead() -> None:
    wanted, data = settings(num_workers=1, prefetch_factor=4), WhoLoads()
    loader = DataLoader(data, **train_loader_kwargs(wanted, resolve_plan(wanted, CPU)))
    batches = iter(loader)
    next(batches)
    ahead = (1 + 4) * 8  # taking the first batch orders the fifth
    deadline = time.monotonic() + 20
    while data.loaded.value < ahead and time.monotonic() < deadline and not settled(data):
        time.sleep(0.02)
    assert data.loaded.value == ahead
    del batches


def settled(data: WhoLoads) -> bool:
    """Tell whether loading has come to rest: nothing in half a second."""
    before = data.loaded.value
    time.sleep(0.5)
    return bool(data.loaded.value == before)


@pytest.mark.parametrize(
    ("limits", "workers"),
    [
        ({}, 7),
        ({"affinity": 3}, 2),
        ({"cgroup": 2.5}, 1),
        ({"slurm": "4"}, 3),
        ({"affinity": 6, "cgroup": 5.0, "slurm": "1"}, 0),
    ],
)
def test_automatic_workers_respect_what_this_job_may_use(
    limits: dict[str, Any], workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    monkeypatch.setattr("ptycho_exec.machine.facts.affinity_cpus", lambda: limits.get("affinity"))
    monkeypatch.setattr("ptycho_exec.machine.facts.cgroup_cpus", lambda: limits.get("cgroup"))
    monkeypatch.delenv("SLURM_CPUS_PER_TASK", raising=False)
    if "slurm" in limits:
        monkeypatch.setenv("SLURM_CPUS_PER_TASK", limits["slurm"])
    wanted = settings(num_workers="auto")
    for kwargs in (train_loader_kwargs, inference_loader_kwargs):
        with process_flags(wanted):  # torch warns of more workers than this machine has
            loader = DataLoader(TensorDataset(torch.ones(2)), **kwargs(wanted))
        assert loader.num_workers == workers


# --- loggers ----------------------------------------------------------------------------------------------


class Told(Exception):  # noqa: N818
    """Carries what a logger was built with."""


@pytest.mark.acts(
    "experiment_name", "name of the experiment that the tracking client creates", ["experiment_name"]
)
@pytest.mark.acts(
    "tracking_uri",
    "address that the tracking client is given, and asked whether it answers",
    ["tracking_uri"],
)
@pytest.mark.parametrize(
    ("asked", "told"),
    [
        ({"experiment_name": "grain"}, {"experiment_name": "grain"}),
        ({"tracking_uri": "file:///tmp/elsewhere"}, {"tracking_uri": "file:///tmp/elsewhere"}),
    ],
    ids=["experiment_name", "tracking_uri"],
)
def test_mlflow_is_told_experiment_and_address(
    asked: dict[str, str], told: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def build(**options: Any) -> None:
        raise Told(options)

    monkeypatch.setattr("lightning.pytorch.loggers.MLFlowLogger", build)
    wanted = settings(logger_backend="mlflow", **asked)
    plan = resolve_plan(wanted, CPU.model_copy(update={"packages": {"mlflow": "3"}}))
    with process_flags(wanted), pytest.raises(Told) as caught:
        build_trainer(wanted, max_epochs=1, plan=plan, announce=False, run_dir=tmp_path)
    assert told.items() <= caught.value.args[0].items()


# --- inference ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(scan: ScanData) -> Any:
    return _train_with_lightning(scan, None, science(), settings())["models"]["lightning_module"]


@pytest.mark.acts("inference_batch_size", "length of the batches that arrive in prediction")
def test_inference_batches_have_the_asked_size(scan: ScanData, trained: Any, watch: Watch) -> None:
    sizes = []

    class Look(pl.Callback):
        def on_predict_batch_start(
            self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
        ) -> None:
            sizes.append(len(batch["amplitude"]))

    watch(Look())
    run_inference_with_lightning(trained, scan, science(), settings(inference_batch_size=20))
    assert sizes == [20, 20, 8]


@pytest.mark.acts("middle_trim", "pixels of the object that patches cover")
def test_middle_trim_stitches_the_middle_of_each_patch(scan: ScanData, trained: Any) -> None:
    def coverage(**values: object) -> Any:
        return run_inference_with_lightning(trained, scan, science(), settings(**values))["coverage"]

    outer = coverage(middle_trim=8) > 0
    y, x = np.nonzero(outer)
    rows, columns = scan.positions_px[:, 0], scan.positions_px[:, 1]
    assert y.min() >= math.floor(rows.min() - 4)
    assert x.max() <= math.ceil(columns.max() + 4)
    assert outer.sum() < (coverage() > 0).sum()


@pytest.mark.acts("pad_eval", "whether patches that overhang the canvas are stitched")
def test_pad_eval_keeps_patches_that_overhang_the_canvas(scan: ScanData, trained: Any) -> None:
    shifted = scan.subset(np.arange(len(scan)))
    moved = ScanData(**{**vars(shifted), "positions_px": shifted.positions_px - [6.0, 0.0]})
    with pytest.raises(DataError, match="canvas"):
        run_inference_with_lightning(trained, moved, science(), settings(pad_eval=False))
    made = run_inference_with_lightning(trained, moved, science(), settings(pad_eval=True))
    assert made["object"].shape == scan.canvas_shape


# --- what to do when a machine cannot -------------------------------------------------------------------


@pytest.mark.acts("on_unsupported", "whether a run stops or trains with the nearest value")
def test_on_unsupported_trains_with_the_nearest_value_or_stops(scan: ScanData) -> None:
    asked = {"precision": "16-mixed", "accelerator": "cpu"}
    with pytest.warns(SettingsWarning, match="16-mixed became bf16-mixed"):
        made = _train_with_lightning(scan, None, science(), settings(**asked, on_unsupported="adapt"))
    assert made["models"]["trainer"].precision == "bf16-mixed"
    with pytest.raises(SettingsError, match="silently use bf16-mixed"):
        _train_with_lightning(scan, None, science(), settings(**asked, on_unsupported="error"))
