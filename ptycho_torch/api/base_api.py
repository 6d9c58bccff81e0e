"""The calls that Ptychodus makes in its child processes (release 1.7 and later), answered by our workflows.

    train:        ConfigManager -> PtychoDataLoader(directory) -> PtychoModel -> Trainer.train
    reconstruct:  PtychoModel of a checkpoint -> ConfigManager -> PtychoDataLoader.from_np -> InferenceEngine

What its keywords mean is decided in `ptycho_torch.ptychodus.translation`. What a run cannot do as it was
asked is reported in one warning of the logger that Ptychodus shows, and kept in the run's manifest.

Shape legend: M patterns, N x N pixels, P probe modes, H x W object, L object layers.
"""

from __future__ import annotations

import copy
import logging
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch.callbacks import Callback
from numpy.typing import ArrayLike, NDArray

from ptycho_exec.errors import DataError, Finding, SettingsError
from ptycho_exec.machine.facts import MachineFacts
from ptycho_exec.plan import Plan
from ptycho_exec.record import read_manifest, write_manifest
from ptycho_torch.config import ScienceConfig
from ptycho_torch.data.assemble import scan_from_arrays
from ptycho_torch.data.containers import selected
from ptycho_torch.data.scan import ScanData
from ptycho_torch.factory import TrainingPayload, inference_science, overruled, whole_scan
from ptycho_torch.network.checkpoint import MODEL_NAME
from ptycho_torch.ptychodus import translation
from ptycho_torch.ptychodus.checkpoints import KEYWORDS_KEY, SelfDescription, plain_keywords, read_configs
from ptycho_torch.ptychodus.epochs import IF_GREY, EpochNews, Follower
from ptycho_torch.ptychodus.keywords import (
    LOGGER,
    DataConfig,
    DatagenConfig,
    InferenceConfig,
    ModelConfig,
    TrainingConfig,
)
from ptycho_torch.ptychodus.labels import in_words_of_the_window
from ptycho_torch.ptychodus.remedies import finding_lines, shown_in_the_window, verdict_lines
from ptycho_torch.ptychodus.training_data import PROBES_DIFFER, probe_distance, read_training_data
from ptycho_torch.ptychodus.translation import Configs, Translation
from ptycho_torch.ptychodus.window import end_with_window, require_release
from ptycho_torch.settings import ScienceSettings
from ptycho_torch.workflows import components, runs

logger = logging.getLogger(LOGGER)

LIGHTNING = "lightning"


class ConfigManager:
    """The keyword classes of one session, together.

    Raises:
        SettingsError: Ptychodus calls, in a release before 1.7.
    """

    @shown_in_the_window()
    def __init__(
        self,
        data_config: DataConfig,
        model_config: ModelConfig,
        training_config: TrainingConfig,
        inference_config: InferenceConfig,
        datagen_config: DatagenConfig | None = None,
    ) -> None:
        require_release()
        self.data_config = data_config
        self.model_config = model_config
        self.training_config = training_config
        self.inference_config = inference_config
        self.datagen_config = datagen_config or DatagenConfig()

    @classmethod
    def from_loaded_model(cls, ptycho_model: PtychoModel) -> ConfigManager:
        """Return the configs that a loaded model brought along."""
        return cls(
            ptycho_model.data_config,
            ptycho_model.model_config,
            ptycho_model.training_config,
            ptycho_model.inference_config,
        )

    @property
    def configs(self) -> Configs:
        return Configs(self.data_config, self.model_config, self.training_config, self.inference_config)

    @shown_in_the_window()
    def validate_arch_compatibility(self, ptycho_model: PtychoModel) -> None:
        """Compare these configs with the network that was loaded.

        Raises:
            SettingsError: what differs, all of it.
        """
        meant, module = translation.to_science(self.configs).model, ptycho_model.model
        network = module.model_config
        pairs = {
            "N": (self.data_config.N, module.data_config.N),
            "n_filters_scale": tuple(
                filters / translation.FILTERS for filters in (meant.n_filters, network.n_filters)
            ),
            "amp_activation": (meant.amp_activation, network.amp_activation),
        }
        findings = [
            Finding(
                f"{name} is {asked} in the configs and {there} in the network",
                where="configs and checkpoint",
                expected="one value",
                fix="take the configs that the checkpoint holds",
                code="conflict",
            )
            for name, (asked, there) in pairs.items()
            if asked != there
        ]
        if findings:
            raise SettingsError.from_findings(findings)


class DataloaderFormats(Enum):
    """How data are fed: there is one way."""

    LIGHTNING_ONLY_MODULE = "lightning_only_module"


class PtychoDataLoader:
    """A scan to learn from or to reconstruct, with the place where results go.

    Args:
        data_dir: what Ptychodus calls the input directory; see `training_data.find_sources`.
        config_manager: its `data_config` is replaced by one whose N is the side of the patterns.
        data_format: see `DataloaderFormats`.
        output_dir: results go into `run_<time>` in there.

    Raises:
        DataError: nothing to read, or what is there cannot be used.
    """

    def __init__(
        self,
        data_dir: str | Path,
        config_manager: ConfigManager,
        data_format: DataloaderFormats = DataloaderFormats.LIGHTNING_ONLY_MODULE,
        output_dir: str | Path = ".",
    ) -> None:
        self.data_format = DataloaderFormats(data_format)
        self.config_manager = config_manager
        asked = config_manager.configs
        with shown_in_the_window():
            self.scan = read_training_data(
                Path(data_dir),
                translation.to_science(asked).data,
                labeled=asked.supervised,
                phase_free=bool(asked.data.phase_subtraction),
            )
        self.asked_n = int(asked.data.N)
        self.bounds_applied = "scans" in self.scan.report
        self.object_shape: tuple[int, ...] = self.scan.canvas_shape
        stamp = datetime.now().strftime("%Y%m%d_%H%M%S")
        names = (Path(output_dir) / f"run_{stamp}{more}" for more in ("", *(f"_{k}" for k in range(2, 1000))))
        self.output_dir = next(name for name in names if not name.exists())
        logger.info("learning from %s: %d patterns", self.scan.source, len(self.scan))
        config_manager.data_config = _with_n(config_manager.data_config, self.scan.n_pixels)

    @classmethod
    def from_np(
        cls,
        diff_patterns: ArrayLike,
        probe: ArrayLike,
        positions: ArrayLike,
        config_manager: ConfigManager,
        object_shape: Sequence[int] | None = None,
    ) -> PtychoDataLoader:
        """Take a scan to reconstruct out of memory.

        Args:
            diff_patterns: (M, N, N) counts.
            probe: (P, N, N) complex.
            positions: (M, 2) [y, x] in object pixels; pixel k of a patch lies at position - (N-1)/2 + k.
            config_manager: that of the loaded model.
            object_shape: (H, W) or (L, H, W) of the object that the positions count in. Ptychodus does not
                pass it; it is then looked up where Ptychodus keeps it, or else derived from the positions.

        Raises:
            DataError: arrays that cannot be used.
        """
        loader = cls.__new__(cls)
        loader.data_format = DataloaderFormats.LIGHTNING_ONLY_MODULE
        loader.config_manager = config_manager
        points = np.asarray(positions, dtype=np.float64)
        with shown_in_the_window():
            scan = scan_from_arrays(
                np.asarray(diff_patterns),
                points,
                probe=np.asarray(probe),
                domain="intensity",
                format="Ptychodus",
            )
        shape = _object_shape_of_caller() if object_shape is None else object_shape
        if shape is None:
            shape = _shape_around(points, scan.n_pixels)
        loader.object_shape = _checked_shape(shape, scan.n_pixels)
        height, width = loader.object_shape[-2:]
        # Ptychodus sends no mask, and 0 where its own mask is.
        findings = [row for row in scan.report["findings"] if row["code"] != "dead-pixels"]
        loader.scan = replace(
            scan,
            positions_px=points,
            canvas_shape=(height, width),
            position_shift_px=(0.0, 0.0),
            report={**scan.report, "findings": findings},
        )
        loader.asked_n = scan.n_pixels
        loader.bounds_applied = True
        loader.output_dir = Path()
        return loader


def _with_n(config: DataConfig, n: int) -> DataConfig:
    changed = copy.copy(config)
    changed.N = n
    return changed


def _object_shape_of_caller() -> tuple[int, ...] | None:
    """Return the shape of the object that Ptychodus reconstructs, (L, H, W); None when another program calls.

    Ptychodus passes positions in pixels of an object whose shape it keeps to itself, and needs a result of
    that very shape: it gives the result the center of its own object.
    """
    frame = sys._getframe(2)
    if not str(frame.f_globals.get("__name__", "")).startswith("ptychodus."):
        return None
    product = getattr(frame.f_locals.get("parameters"), "product", None)
    array = getattr(product, "object_", None)
    return None if array is None else (array.num_layers, array.height_px, array.width_px)


def _checked_shape(shape: Sequence[int], n: int) -> tuple[int, ...]:
    """Return the shape of an object that can hold a patch of n x n pixels.

    Raises:
        DataError: it is none.
    """
    sides = tuple(int(side) for side in np.atleast_1d(np.asarray(shape)))
    if len(sides) not in (2, 3) or min(sides) < 1 or min(sides[-2:]) < n:
        raise DataError(
            f"an object of the shape {sides} is not possible",
            where="object_shape",
            expected=f"(H, W) or (L, H, W), with H and W of at least {n}, the side of a pattern",
            fix="pass the shape of the array whose pixels the positions count",
        )
    return sides


def _shape_around(positions: NDArray[np.float64], n: int) -> tuple[int, int]:
    """Return the (H, W) in whose middle the positions lie, as in an object that was sized for its scan.

    Raises:
        DataError: there is none, because the positions do not count from an object's first pixel.
    """
    low, high = positions.min(axis=0), positions.max(axis=0)
    height, width = np.round(low + high).astype(int) + 1
    if min(height, width) < n:
        raise DataError(
            f"positions [y, x] from {low.round(1).tolist()} to {high.round(1).tolist()} "
            "lie in the middle of no object",
            where="positions",
            expected=f"pixels of the object, counted from its first one, of at least {(n - 1) / 2:g}",
            fix="count them from the object's first pixel, and pass object_shape",
        )
    logger.warning(
        "the object's shape was not given; %d x %d was taken, in whose middle the positions lie",
        height,
        width,
    )
    return int(height), int(width)


class PtychoModel:
    """A network with the configs that it was or will be trained under."""

    def __init__(
        self,
        model_config: ModelConfig,
        data_config: DataConfig,
        training_config: TrainingConfig,
        inference_config: InferenceConfig,
    ) -> None:
        self.model_config = model_config
        self.data_config = data_config
        self.training_config = training_config
        self.inference_config = inference_config
        self.model: Any = None

    @staticmethod
    @shown_in_the_window()
    def _extract_configs_from_checkpoint(
        path: str | Path,
    ) -> tuple[DataConfig, ModelConfig, TrainingConfig, InferenceConfig]:
        """Return the configs of a checkpoint: those that Ptychodus sent, or some that mean the same.

        Raises:
            DataError: the file is damaged, or another program's.
        """
        stored, _ = read_configs(path)
        return stored.data, stored.model, stored.training, stored.inference

    @classmethod
    @shown_in_the_window()
    def _new_model(cls, model: Any, config_manager: ConfigManager) -> PtychoModel:
        """Return an untrained network of the class `model`."""
        untrained = cls(
            config_manager.model_config,
            config_manager.data_config,
            config_manager.training_config,
            config_manager.inference_config,
        )
        science = translation.to_science(config_manager.configs)
        data = science.data.model_copy(update={"N": config_manager.data_config.N})
        untrained.model = model(
            model_config=science.model,
            data_config=data,
            training_config=science.training,
            inference_config=science.inference,
        )
        return untrained


@dataclass
class _Pending:
    """What stands for Lightning's Trainer until training begins: callers add their callbacks to its list."""

    callbacks: list[Callback]


class Trainer:
    """One training session; see `_from_lightning`."""

    def __init__(
        self, model: PtychoModel, dataloader: PtychoDataLoader, config_manager: ConfigManager
    ) -> None:
        self.model = model
        self.dataloader = dataloader
        self.config_manager = config_manager
        self._trainer: Any = _Pending([])

    @classmethod
    @shown_in_the_window()
    def _from_lightning(
        cls,
        model: PtychoModel,
        dataloader: PtychoDataLoader,
        orchestration: str,
        config_manager: ConfigManager,
    ) -> Trainer:
        """Prepare a training; nothing runs yet.

        Raises:
            SettingsError: another orchestration than "lightning".
        """
        _require_lightning(orchestration)
        return cls(model, dataloader, config_manager)

    @shown_in_the_window()
    def train(self, orchestration: str = LIGHTNING, experiment_name: str = "") -> None:
        """Train, leave a complete run directory at `dataloader.output_dir`, put the network into `model`.

        Args:
            orchestration: "lightning".
            experiment_name: the setting of that name; empty leaves it to environment and files.

        Raises:
            SettingsError, DataError, UserError: as `ptycho_torch.workflows.runs.train`.
        """
        _require_lightning(orchestration)
        facts = MachineFacts.probe()
        configs, scan, folder = self.config_manager.configs, self.dataloader.scan, self.dataloader.output_dir
        meant = self._translated(configs, scan, facts)
        if experiment_name:
            meant = replace(meant, execution={**meant.execution, "experiment_name": experiment_name})
        settings = translation.settings_for(meant.execution, "train")
        training = components.plan_training(scan, None, meant.science, settings, facts=facts, say=_log)
        asked = ScienceSettings().config
        lost = (*translation.shadowed(settings), *translation.unused_science(asked, meant.science))
        notes = (*meant.notes, *_adapted(training.plan), *lost)
        warning = warn_user("training", notes, configs, meant.usual)
        about = {KEYWORDS_KEY: plain_keywords(configs)}
        own = list(self._trainer.callbacks)
        # Several devices work in processes that the caller's callbacks cannot be sent to, nor come back from.
        several = training.plan.settings.devices not in (1, (0,))
        callbacks = [SelfDescription(meant.science, about), EpochNews(folder), *([] if several else own)]
        try:
            with Follower(folder, own if several else ()):
                run = runs.train(
                    TrainingPayload(
                        Path(scan.source or "."), None, folder, meant.science, settings, meant.execution
                    ),
                    training=training,
                    callbacks=callbacks,
                    about=about,
                    say=_log,
                    odd_lines=finding_lines,
                    again=f"in Ptychodus, Infer takes {folder / MODEL_NAME} if an epoch has ended",
                )
        finally:
            if (folder / "manifest.json").is_file():  # also of a training that failed
                before = read_manifest(folder).get("warnings", [])
                write_manifest(folder, **about, warnings=[*before, warning] if warning else before)
        logger.info("complete, in %s; Infer takes the best model; %s", folder, IF_GREY)
        self.model.model = run.results.module
        self._trainer = run.results.models["trainer"]

    def _translated(self, configs: Configs, scan: ScanData, facts: MachineFacts) -> Translation:
        asked = replace(configs, data=_with_n(configs.data, self.dataloader.asked_n))
        if self.dataloader.bounds_applied:
            asked.data.x_bounds = asked.data.y_bounds = (0.0, 1.0)
        within = selected(scan, translation.to_science(asked).data, 0)
        return translation.for_training(asked, n_pixels=scan.n_pixels, n_patterns=len(within), facts=facts)


def _require_lightning(orchestration: str) -> None:
    if orchestration.casefold() != LIGHTNING:
        raise SettingsError(
            f"orchestration = {orchestration} is not possible",
            where="Trainer",
            expected=LIGHTNING,
            fix="set PTYCHO_EXEC_LOGGER_BACKEND=mlflow to have metrics recorded by MLflow",
        )


class InferenceEngine:
    """Predicts the patches of a scan and stitches them."""

    def __init__(self, config_manager: ConfigManager, ptycho_model: PtychoModel) -> None:
        self.config_manager = config_manager
        self.ptycho_model = ptycho_model

    @shown_in_the_window()
    def predict_and_stitch(self, loader: PtychoDataLoader) -> NDArray[np.complex64]:
        """Return the object, of the shape and on the pixels of the one that positions count in.

        Returns:
            complex64 (H, W), 0 where no patch lies; (L, H, W) for an object of several layers, of which the
            first holds everything and the others are 1.

        Raises:
            DataError: patterns of another size than the network's, or nothing to stitch.
        """
        end_with_window()
        module, scan = self.ptycho_model.model, loader.scan
        n = module.data_config.N
        if scan.n_pixels != n:
            raise DataError(
                f"the patterns are {scan.n_pixels} x {scan.n_pixels}, the network was trained for {n} x {n}",
                where="diffraction patterns",
                expected=f"patterns of {n} x {n}",
                fix="load a model for this size, or crop the patterns in Ptychodus as for the training",
            )
        trained = ScienceConfig(
            data=module.data_config,
            model=module.model_config,
            training=module.training_config,
            inference=module.inference_config,
        )
        base = inference_science(trained, "the loaded model")
        facts = MachineFacts.probe()
        meant = translation.for_inference(
            self.config_manager.configs, base, n, facts, n_modes=len(module.probe)
        )
        settings = translation.settings_for(meant.execution, "infer")
        inference = components.plan_inference(module, scan, whole_scan(meant.science), settings, facts=facts)
        inference.plan.raise_if_blocked(include_trainer_refusals=False)
        notes = [*meant.notes, *_adapted(inference.plan), *translation.shadowed(settings)]
        notes += [finding.what for finding in overruled(base)]
        notes += translation.unused_science(base, meant.science)
        distance = probe_distance(scan.probe, module.probe.detach().cpu().numpy())
        if distance > PROBES_DIFFER:
            apart = f"by {distance:.0%}" if np.isfinite(distance) else "in its number of modes"
            notes.append(f"the product's probe differs {apart} from that of the training, which is used")
        odd = finding_lines(scan)
        if odd:
            logger.warning("%s", "\n".join(["what is odd about this scan:", *(f"- {line}" for line in odd)]))
        result = components.run_inference(inference)
        verdict = result.verdict
        notes += [text for text in result.notices if text != "\n".join(verdict.lines())]
        warn_user("reconstruction", notes, self.config_manager.configs, meant.usual)
        if verdict.warns:
            logger.warning("%s", "\n".join(verdict_lines(verdict, scan)))
        else:
            logger.info("%s", verdict.line())
        shape = loader.object_shape
        if len(shape) == 2 or shape[0] == 1:
            return result.object
        layers = np.ones(shape, dtype=np.complex64)
        layers[0] = result.object
        return layers


def _log(text: str) -> None:
    level = logging.WARNING if text.startswith(runs.WARNING) else logging.INFO
    logger.log(level, "%s", text.removeprefix(runs.WARNING))


def warn_user(what: str, notes: Iterable[str], configs: Configs, usual: Iterable[str] = ()) -> str | None:
    """Log one warning that lists what is not as it was asked for, and return it; None when all is.

    What became of values that nobody changed is no warning, and logged beside it.
    """
    lines = list(dict.fromkeys(notes))
    others = [*usual, *(line for line in lines if translation.is_usual(line, configs))]
    lines = [in_words_of_the_window(line) for line in lines if line not in others]
    if others:
        fitted = (in_words_of_the_window(line) for line in others)
        logger.info(
            "%s", "\n".join(["fitted to this scan and this machine:", *(f"- {line}" for line in fitted)])
        )
    if not lines:
        return None
    text = "\n".join([f"this {what} is not in all as Ptychodus asked:", *(f"- {line}" for line in lines)])
    logger.warning("%s", text)
    return text


def _adapted(plan: Plan) -> Iterable[str]:
    return (notice.what for notice in plan.notices if notice.level == "adapted")
