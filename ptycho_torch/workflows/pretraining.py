"""A network for a beam: trained on simulated objects under its probe, for scans that are measured later.

What it learns with is simulated as it is asked for (`ptycho_torch.pretraining`). Of the photon scale, which
every scan has anew, it knows nothing; an inference measures it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from ptycho_exec.errors import DataError, Finding, SettingsError
from ptycho_exec.fields.spec import format_value
from ptycho_exec.files import file_sha256
from ptycho_exec.machine.facts import MachineFacts
from ptycho_exec.plan import ModuleTraits, resolve_plan
from ptycho_exec.trainer.handover import handed_over
from ptycho_torch.config import UPDATES, ScienceConfig
from ptycho_torch.data.assemble import fit_canvas, scan_from_arrays
from ptycho_torch.data.probe_file import StoredProbe, read_probe
from ptycho_torch.data.scan import ScanData
from ptycho_torch.factory import PretrainingPayload
from ptycho_torch.pretraining.samples import SimulatedSamples
from ptycho_torch.pretraining.textures import random_object
from ptycho_torch.settings import changed, flat
from ptycho_torch.simulate import diffract, scan_positions
from ptycho_torch.workflows.clock import Clock
from ptycho_torch.workflows.components import Training
from ptycho_torch.workflows.preparing import AUTO, Decision

EPOCH_SAMPLES = 8192
"""Patterns of an epoch; each of them is seen once."""
EXAMPLE_PATTERNS = 64
"""Patterns of the scan that stands for all of them in the run's report."""


def plan_pretraining(
    payload: PretrainingPayload,
    *,
    say: Callable[[str], None] = lambda _: None,
    clock: Clock | None = None,
    facts: MachineFacts | None = None,
) -> Training:
    """Read the probe, and plan a training on simulated patterns; `say` takes what is decided.

    Raises:
        DataError: there is no probe.
        SettingsError: settings that cannot be honored, or mean something for measured patterns only.
    """
    clock, handed = clock or Clock(), handed_over()
    science, settings = payload.science, payload.settings
    with clock.phase("read"):
        stored = _beam(str(payload.train_data_file))
    with clock.phase("prepare"):
        science = simulated_science(science, stored.wave.shape[-1], say)
        example = example_scan(stored, payload.photons, settings.seed)
        assert example.probe is not None
        samples = SimulatedSamples(example.probe, payload.photons, EPOCH_SAMPLES, settings.seed)
    traits = ModuleTraits(logged_metrics=("train_loss",), has_validation=False, train_samples=len(samples))
    with clock.phase("plan"):
        plan = handed.plan if handed else resolve_plan(settings, facts or MachineFacts.probe(), traits)
    return Training(
        example, None, samples, None, science, plan, payload.overrides_applied, clock, for_a_beam=True
    )


def _beam(text: str) -> StoredProbe:
    """Read the probe; a remedy that is for the probe of a scan is replaced.

    Raises:
        DataError: as `read_probe`.
    """
    try:
        return read_probe(text)
    except DataError as error:
        fix = "mend the file, or name another place of the probe: --probe FILE"
        place = "a path to a result, a product, a scan or an array"
        raise DataError.from_findings(
            [
                replace(
                    finding,
                    expected=place if place in finding.expected else finding.expected,
                    fix=fix if "--probe estimate" in finding.fix else finding.fix,
                )
                for finding in error.findings
            ]
        ) from error


def simulated_science(
    science: ScienceConfig, n: int, say: Callable[[str], None] = lambda _: None
) -> ScienceConfig:
    """Return the science with what simulated patterns of n x n pixels decide; `say` takes what has no effect.

    Raises:
        SettingsError: it asks for what needs measured patterns, or for patterns of another side.
    """
    training, data = science.training, science.data
    refused = {
        "split_counts": (training.split_counts is True, "simulated patterns are seen once each"),
        "val_fraction": (training.val_fraction > 0, "simulated patterns are seen once each"),
        "probe_trainable": (science.model.probe_trainable, "the simulated beam is the one that is given"),
        "N": (data.N not in (None, n), f"the probe has {n} pixels on a side"),
    }
    values = flat(science)
    findings = [
        Finding(
            f"{name} = {format_value(values[name])}, and {why}",
            where=science.origins[name].describe() if name in science.origins else name,
            expected="a training on a scan" if name != "N" else str(n),
            fix="leave it out",
            code="conflict",
            field=name,
        )
        for name, (is_asked, why) in refused.items()
        if is_asked
    ]
    if findings:
        raise SettingsError.from_findings(findings)
    if data.gridsize != 1:
        say(f"note: gridsize = {data.gridsize} has no effect here: each simulated pattern is one sample")
    why = "simulated patterns come with the true patches"
    decided: dict[str, Any] = {"split_counts": False}
    if training.loss == AUTO:
        decided["loss"] = "supervised"
        say(Decision("loss", "supervised", why).line())
    science = changed(science, "training", decided, why)
    numbers = dict(zip(("modulus_updates", "prediction_updates"), UPDATES, strict=True))
    updates = {name: value for name, value in numbers.items() if getattr(science.model, name) == AUTO}
    science = changed(science, "model", updates, why) if updates else science
    return changed(science, "data", {"N": n, "gridsize": 1}, "the probe has it; each pattern is one sample")


def example_scan(probe: StoredProbe, photons: tuple[float, float], seed: int) -> ScanData:
    """Return a small scan of one random object, at the middle of the doses."""
    n = probe.wave.shape[-1]
    rng = np.random.default_rng([seed, 5])
    centers = scan_positions(EXAMPLE_PATTERNS, 0.08 * n, "raster")
    centers += rng.uniform(-1, 1, centers.shape)
    shape, shift = fit_canvas(centers, n)
    truth = random_object(rng, max(shape))[: shape[0], : shape[1]]
    dose = float(np.sqrt(photons[0] * photons[1]))
    wave = probe.wave * np.float32(np.sqrt(dose / np.sum(np.abs(probe.wave) ** 2, dtype=np.float64)))
    counts = rng.poisson(diffract(truth, wave, centers + shift))
    scan = scan_from_arrays(
        counts.astype(np.uint16 if counts.max() < 2**16 else np.uint32),
        centers + shift,
        probe=wave,
        object_guess=truth,
        domain="intensity",
        format="simulated",
        geometry={"pixel_size_m": probe.pixel_size_m} if probe.pixel_size_m else None,
    )
    about = {
        "files": {probe.path.name: file_sha256(probe.path)},
        "array": probe.array,
        "photons": list(photons),
    }
    return replace(scan, source=probe.path, report={**scan.report, **about})
