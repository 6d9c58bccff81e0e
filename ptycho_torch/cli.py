"""`ptycho-torch`: simulate, inspect, train, infer, evaluate, compare, tune, rerun, demo; show, explain ...

Every execution setting and every science field is a flag. Heavy packages are imported by the command that
needs them, after its arguments and settings are known to be right.
"""

from __future__ import annotations

import argparse
import itertools
import json
import shlex
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

from ptycho_exec import progress
from ptycho_exec.cli import commands
from ptycho_exec.cli.completion import COMPLETION
from ptycho_exec.cli.flags import (
    JSON,
    QUIET,
    Argument,
    Command,
    Parser,
    add_commands,
    argument,
    flags_given,
    run,
    switch,
)
from ptycho_exec.errors import DataError, Finding, SettingsError, UserError
from ptycho_exec.fields.model import ExecutionFields
from ptycho_exec.fields.spec import FieldSpec, decode_text, field_specs, format_value
from ptycho_exec.fields.stages import without_effect
from ptycho_exec.files import atomic_path
from ptycho_exec.machine.facts import ask_early
from ptycho_exec.machine.ranks import is_rank_zero
from ptycho_exec.record import names_of, read_manifest, settings_from_manifest
from ptycho_exec.settings import ExecutionSettings
from ptycho_exec.sources.discovery import Request
from ptycho_exec.sources.explain import rows_of, table
from ptycho_exec.sources.origins import Kind
from ptycho_exec.sources.resolve import Factory, resolve_together
from ptycho_exec.trainer.handover import handed_over
from ptycho_torch.config import (
    DataConfig,
    InferenceConfig,
    ModelConfig,
    Preprocessing,
    ScienceConfig,
    TrainingConfig,
)
from ptycho_torch.factory import (
    INFERENCE_DEFAULTS,
    PHOTONS,
    PRETRAINING_DEFAULTS,
    PRETRAINING_SCIENCE,
    RECONSTRUCTION_DEFAULTS,
    TRAINING_DEFAULTS,
    InferencePayload,
    PretrainingPayload,
    TrainingPayload,
    create_inference_payload,
    create_pretraining_payload,
    create_training_payload,
    overruled,
)
from ptycho_torch.quick_start import import_beside, import_lightning, import_torch
from ptycho_torch.settings import ScienceSettings, flat
from ptycho_torch.workflows.clock import Clock, process_age

if TYPE_CHECKING:
    from ptycho_torch.data.scan import ScanData
    from ptycho_torch.tools.rerun import Compared
    from ptycho_torch.workflows.results import InferenceResult, TrainingResult
    from ptycho_torch.workflows.runs import Run

AUTO = Path("auto")
"""The word of --resume for the run in --out itself; a directory of that name is given by its whole path."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run `ptycho-torch`; return its exit code.

    argv: the words after the program's name; None takes those of this process, whose start then counts, too.
    """
    begun = time.perf_counter() - (process_age() if argv is None else 0.0)

    def handle(args: argparse.Namespace) -> int:
        args.clock = Clock(begun=begun)
        return int(args.handler(args))

    return run(build_parser(), argv, handle)


def build_parser() -> Parser:
    """Return the parser of all commands."""
    parser = Parser(
        prog="ptycho-torch", description="Physics-informed reconstruction of ptychographic scans."
    )
    add_commands(parser, COMMANDS)
    return parser


# --- configs ----------------------------------------------------------------------------------------------


def configs_of(
    args: argparse.Namespace, defaults: Mapping[str, Any], science_defaults: Mapping[str, Any] | None = None
) -> tuple[ExecutionSettings, ScienceSettings]:
    """Resolve how and what to run, together, with the values that the work chooses where nobody did.

    Raises:
        SettingsError: everything that is wrong in either, and flags that act in another stage only.
    """
    where = {"profile": args.profile, "settings_file": args.settings}
    how, what = resolve_together(
        Request(ExecutionSettings, flags=flags_given(args), factory_defaults=dict(defaults), **where),
        Request(
            ScienceSettings,
            flags=flags_given(args, ScienceSettings),
            factory_defaults=dict(science_defaults or {}),
            **where,
        ),
    )
    findings = list(misplaced_flags(args))
    built: list[Any] = []
    for model, resolution in ((ExecutionSettings, how), (ScienceSettings, what)):
        try:
            built.append(model.from_resolution(resolution))
        except SettingsError as error:
            findings += error.findings
    if findings:
        raise SettingsError.from_findings(list(dict.fromkeys(findings)))
    if built[0].enable_progress_bar is False:
        progress.hide()
    return built[0], built[1]


def science_settings_of(args: argparse.Namespace) -> ScienceSettings:
    """Resolve what to run, where nothing is executed."""
    return ScienceSettings.from_resolution(commands.resolve_from(args, model=ScienceSettings))


def misplaced_flags(args: argparse.Namespace) -> Iterator[Finding]:
    """Yield a finding for each flag that was typed and acts in another stage."""
    for name in sorted(without_effect(args.stage) & flags_given(args).keys()):
        flag = field_specs()[name].flag
        yield Finding(
            f"{flag} has no effect in {args.command}",
            where=f"flag {flag}",
            expected=f"settings that act in {args.stage}",
            fix="leave it out",
            code="no-effect",
            field=name,
        )


def notes_of(args: argparse.Namespace, settings: ExecutionSettings, science: ScienceConfig) -> Iterator[str]:
    """Yield what the user should know of settings that have no effect here."""
    yield from (notice.what for notice in settings.notices)
    yield from (note.what for note in overruled(science))
    idle = [
        f"{name} ({settings.origins[name].describe()})"
        for name in field_specs()
        if name in without_effect(args.stage) and settings.origins[name].kind not in _NOBODY
    ]
    if idle:
        yield f"no effect in {args.command}: {', '.join(idle)}"


_NOBODY = (Kind.DEFAULT, Kind.FACTORY)


def show(args: argparse.Namespace) -> int:
    """Print every science value with its origin; `ptycho-exec show` does so for the execution settings."""
    return commands.show(
        argparse.Namespace(**vars(args), trainer_kwargs=False, loader_kwargs=False), ScienceSettings
    )


def explain(args: argparse.Namespace) -> int:
    """Print everything about one science field, or about those that are not the default."""
    return commands.explain(args, ScienceSettings)


def schema(args: argparse.Namespace) -> int:
    """Print the JSON schema of `ptycho_torch.toml`."""
    return commands.schema(args, ScienceSettings)


def init(args: argparse.Namespace) -> int:
    """Write a starter `ptycho_torch.toml`, and its schema."""
    return commands.init(args, ScienceSettings)


def ptychodus_settings(args: argparse.Namespace) -> int:
    """Write a settings file for Ptychodus."""
    from ptycho_torch.ptychodus.settings_file import settings_ini

    if args.out.exists():
        raise UserError(f"{args.out} exists already", expected="a new file", fix="name another one by --out")
    with atomic_path(args.out) as temporary:
        temporary.write_text(settings_ini(), encoding="utf-8")
    print(f"wrote {args.out}: open it by `ptychodus -s {shlex.quote(str(args.out))}`")
    return 0


# --- simulate, inspect, convert ------------------------------------------------------------------------


SIMULATION = {
    "n": (int, 64, "side of a pattern in pixels"),
    "patterns": (int, 1000, "number of scan positions"),
    "photons": (float, 1e6, "photons per pattern"),
    "contrast": (float, 1.0, "1 keeps the object's full absorption and phase, less makes both weaker"),
    "step_px": (float, None, "distance of neighboring positions in object pixels; none takes 0.08 n"),
    "probe_radius_px": (float, None, "radius of the probe; none takes 11 / 64 of n"),
    "probe_curvature_rad": (float, 3.0, "phase at that radius that defocus adds"),
    "probe_aberration_rad": (float, 0.0, "rms of a smooth phase error of the lens"),
}
OBJECTS = ("dead_leaves", "siemens_star", "star_and_leaves")
DEMO = {
    "photons": 1e8,
    "contrast": 0.5,
    "step_px": 3.0,
    "probe_radius_px": 20.0,
    "probe_curvature_rad": 12.0,
    "probe_aberration_rad": 1.5,
}
"""A test chart under a structured probe, densely scanned: a network alone reconstructs it in a minute."""
DEMO_REFINEMENT = 5
"""Epochs of refinement in the demo: seconds, and the network's object becomes sharp."""


def simulate(args: argparse.Namespace) -> int:
    """Write a simulated scan."""
    from ptycho_torch.simulate import save, simulate_scan

    if args.out.exists():
        raise UserError(f"{args.out} exists already", expected="a new file", fix="choose another name")
    scan = simulate_scan(
        **{name: getattr(args, name) for name in SIMULATION},
        object_kind=args.object,
        scan_kind=args.scan,
        modes=args.modes,
        bad_pixels=args.bad_pixels,
        seed=args.seed,
    )
    path = save(scan, args.out, domain=args.domain)
    height, width = scan.canvas_shape
    patterns = f"{len(scan)} patterns of {args.n} x {args.n} ({args.domain})"
    print(f"wrote {path}: {patterns}, object {height} x {width}")
    return 0


def inspect(args: argparse.Namespace) -> int:
    """Print a scan's detection report."""
    from ptycho_torch.data.judge import lines
    from ptycho_torch.data.read import read_scan, sample_patterns

    science = science_settings_of(args).config
    if args.plot is not None and args.plot.exists():
        raise UserError(f"{args.plot} exists already", expected="a new file", fix="choose another name")
    scan = _with_searches(read_scan(args.file, science.data), science.data)
    if args.plot is not None:
        from ptycho_torch.evaluation.plots import save_scan

        save_scan(scan, sample_patterns(args.file, science.data), args.plot)
    if args.json:
        print(json.dumps(scan.report, indent=2))
        return 0
    below = ("warnings", "findings")
    rows = [(name, _plain_text(value)) for name, value in scan.report.items() if name not in below]
    print("\n".join(table(rows)))
    for line in lines(scan):
        print(f"warning: {line}")
    if args.plot is not None:
        print(f"wrote {args.plot}")
    return 0


def _plain_text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, Mapping):
        found = ": ".join(_plain_text(value[name]) for name in ("value", "why") if name in value)
        more = [f"{name} {_plain_text(item)}" for name, item in value.items() if name not in ("value", "why")]
        return ", ".join(filter(None, [found, *more]))
    if isinstance(value, (list, tuple)):
        return " x ".join(_plain_text(item) for item in value)
    return format_value(value)


def convert(args: argparse.Namespace) -> int:
    """Convert a scan, and print what was written."""
    from ptycho_torch.data.convert import convert as write

    science = science_settings_of(args).config
    path = write(
        args.source,
        args.target,
        args.to,
        science.data,
        photon_energy_eV=args.photon_energy_ev,
        detector_distance_m=args.detector_distance_m,
        prepare=lambda scan: _with_searches(scan, science.data),
    )
    print(f"wrote {path}")
    return 0


def _with_searches(scan: ScanData, data: DataConfig) -> ScanData:
    """Return the scan with the probe and orientation that fields ask to be found; what is found is said."""
    if data.orient != "auto" and data.probe != "estimate":
        return scan
    from ptycho_torch.workflows.preparing import prepared

    def say(text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    found: ScanData = prepared(scan, data, probe=data.probe == "estimate", say=say)
    return found


# --- train, infer, evaluate ------------------------------------------------------------------------------


def train(args: argparse.Namespace) -> int:
    """Train, and leave a run directory."""
    handed = handed_over()
    if handed is not None:
        test = None if args.test is None else Path(args.test)
        out = Path(args.scan), test, Path(args.out)
        start = args.start_from
        payload = TrainingPayload(*out, handed.more, handed.plan.requested, start_from=start)
    else:
        if args.start_from is not None and args.resume not in (None, AUTO):
            raise UserError(
                "--from and --resume are given, and a training begins in one way",
                where=f"--from {args.start_from}, --resume {args.resume}",
                expected="--from to begin with the network of a run, --resume to go on with the run itself",
                fix="leave one of them out",
            )
        settings, science = configs_of(args, TRAINING_DEFAULTS)
        commands.require_launch(settings)
        ask_early()
        overrides = {"test_data_file": args.test} if args.test else {}
        payload = create_training_payload(
            args.scan, args.out, overrides, settings, science=science.config, start_from=args.start_from
        )
        _print_settings(args, settings, payload.science, science.notices)
    finished = _trained(args, payload)
    if finished is None:
        return 0
    words = shlex.join([str(finished.folder), str(payload.train_data_file)])
    print(f"a loss does not judge; `ptycho-torch infer {words} --out OUT` reconstructs the scan and judges")
    _print_end(finished)
    return 0


def pretrain(args: argparse.Namespace) -> int:
    """Train on simulated objects under a probe, and leave a run directory."""
    handed = handed_over()
    photons = (args.photons[0], args.photons[1])
    if handed is not None:
        probe, out = Path(args.probe), Path(args.out)
        payload = PretrainingPayload(probe, None, out, handed.more, handed.plan.requested, photons=photons)
    else:
        settings, science = configs_of(args, PRETRAINING_DEFAULTS, PRETRAINING_SCIENCE)
        commands.require_launch(settings)
        ask_early()
        payload = create_pretraining_payload(args.probe, args.out, photons, settings, science=science.config)
        _print_settings(args, settings, payload.science, science.notices)
    finished = _trained(args, payload)
    if finished is None:
        return 0
    folder = shlex.quote(str(finished.folder))
    print(f"`ptycho-torch infer {folder} SCAN --out OUT` reconstructs a scan of this beam")
    _print_end(finished)
    return 0


def _trained(args: argparse.Namespace, payload: TrainingPayload) -> Run[TrainingResult] | None:
    """Train, or go on with a training, and print its losses; None where it was complete already."""
    args.clock.mark("start")
    import_lightning()
    from ptycho_torch.workflows import runs

    args.clock.mark("import")
    if args.resume == AUTO:
        finished = runs.continue_training(payload, say=print, clock=args.clock)
    else:
        finished = runs.train(payload, resume=args.resume, say=print, clock=args.clock)
    history = {} if finished is None else finished.results["history"]
    for name in ("train_loss", "val_loss"):
        if values := history.get(name):
            print(f"{name}: {values[0]:.4g} -> {values[-1]:.4g} in {len(values)} epochs")
    return finished


def infer(args: argparse.Namespace) -> int:
    """Reconstruct one scan or several, and leave an output directory of each."""
    handed = handed_over()
    if handed is not None:  # one scan; the process that started this one has refused more
        from ptycho_torch.network.checkpoint import find_model

        *trained, scan = args.paths
        found = find_model(trained[0]) if trained else None
        payloads = [InferencePayload(found, Path(scan), Path(args.out), handed.more, handed.plan.requested)]
    else:
        settings, science = configs_of(args, INFERENCE_DEFAULTS)
        commands.require_launch(settings)
        ask_early()
        model, scans = _run_and_scans(args.paths, flat_start=science.config.inference.start == "flat")
        if len(scans) > 1 and settings.strategy != "auto":
            raise SettingsError(
                f"{len(scans)} scans are given, and strategy = {settings.strategy} is for one at a time",
                where=settings.origins["strategy"].describe(),
                expected="one scan, or one process",
                fix="name one scan per command, or leave strategy and devices out",
            )
        payloads = [
            create_inference_payload(model, scan, out, None, settings, science=science)
            for scan, out in zip(scans, _outputs(Path(args.out), scans), strict=True)
        ]
        _print_settings(args, settings, payloads[0].science, science.notices)
    runs = _workflows(args, payloads[0].settings)
    failed: list[Finding] = []
    for payload, finished in runs.infer_each(payloads, say=_say, clock=args.clock):
        if isinstance(finished, UserError):
            scan = payload.test_data_file
            failed += [_of_scan(finding, str(scan)) for finding in finished.findings]
            _say(f"{scan}: failed: {finished.findings[0].what}")
        else:
            _print_inference(finished)
    if failed:
        raise UserError.from_findings(failed)
    return 0


def _workflows(args: argparse.Namespace, settings: ExecutionSettings) -> ModuleType:
    """Import what reconstructs, and what draws beside the work on the first scan.

    Loader workers are forked, which must not happen in the middle of an import.
    """
    args.clock.mark("start")
    import_torch()
    from ptycho_torch.workflows import runs

    if settings.num_workers == 0:
        import_beside("ptycho_torch.figures", "jinja2")
    args.clock.mark("import")
    return runs


def _of_scan(finding: Finding, scan: str) -> Finding:
    """Return a finding that names the scan it is about."""
    return (
        finding
        if scan in finding.where
        else replace(finding, where=": ".join(filter(None, (scan, finding.where))))
    )


def _run_and_scans(paths: Sequence[Path], *, flat_start: bool) -> tuple[Path | None, Sequence[Path]]:
    """Tell the run from the scans: it comes first, and may be missing where no network is used."""
    from ptycho_torch.network.checkpoint import MODEL_NAME

    first = paths[0]
    is_run = first.suffix == Path(MODEL_NAME).suffix or (first / MODEL_NAME).is_file()
    if len(paths) == 1 or (flat_start and not is_run):
        return None, paths
    return first, paths[1:]


def _outputs(out: Path, scans: Sequence[Path]) -> list[Path]:
    """Return a directory for each result: OUT itself for one scan, else one in it by the scan's name.

    Where two scans have the same name, that of the folder comes before it.
    """
    if len(scans) == 1:
        return [out]
    stems = [scan.stem for scan in scans]
    names = [
        stem if stems.count(stem) == 1 else f"{scan.absolute().parent.name}_{stem}"
        for scan, stem in zip(scans, stems, strict=True)
    ]
    for name, scan in zip(names, scans, strict=True):
        if names.count(name) > 1:
            raise UserError(
                f"several results would be written to {out / name}",
                where=str(scan),
                expected="scans with different names, or in folders with different names",
                fix="reconstruct them with one command each",
            )
    return [out / name for name in names]


def _print_inference(finished: Run[InferenceResult]) -> None:
    if finished.evaluation is not None:
        _print_metrics({"reconstruction": finished.evaluation.to_json()})
    _print_end(finished)


def reconstruct(args: argparse.Namespace) -> int:
    """Decide from the data what nobody set, refine, judge, and leave an output directory."""
    settings, science = configs_of(args, INFERENCE_DEFAULTS, RECONSTRUCTION_DEFAULTS)
    commands.require_launch(settings)
    ask_early()
    if not args.scan.exists():
        raise DataError(
            "scan not found", where=str(args.scan), expected="an existing file", fix="correct the path"
        )
    _print_settings(args, settings, science.config, science.notices)
    runs = _workflows(args, settings)
    finished = runs.reconstruct(args.scan, args.out, settings, science, say=_say, clock=args.clock)
    _print_inference(finished)
    return 0


def _say(text: str) -> None:
    print(text, flush=True)


def evaluate(args: argparse.Namespace) -> int:
    """Write a metrics.json into each directory and print them side by side."""
    from ptycho_torch.workflows.runs import compare

    if args.picture is not None and args.picture.exists():
        raise UserError(f"{args.picture} exists already", expected="a new file", fix="choose another name")
    science = _read_as_before(science_settings_of(args), args.outs)
    results, written = compare(args.outs, args.truth, args.picture, data=science.data)
    _print_metrics({name: result.to_json() for name, result in results.items()})
    for folder in dict.fromkeys(path.parent for path in written):
        _print_written([path for path in written if path.parent == folder])
    return 0


def compare(args: argparse.Namespace) -> int:
    """Write one page about several runs."""
    from ptycho_torch.workflows.reports import write_comparison

    print(f"wrote {write_comparison(args.runs, args.out)}")
    return 0


def _read_as_before(asked: ScienceSettings, outs: Sequence[Path]) -> ScienceConfig:
    """Return the science that was asked for; what nobody set of reading a scan is as in the first output."""
    if not (outs[0] / "manifest.json").is_file():
        return asked.config
    before = read_manifest(outs[0])["science"]["data"]
    names = [name for name in Preprocessing.model_fields if name in before and name != "probe"]
    return asked.with_factory_defaults(
        **{name: Factory(before[name], f"as in {outs[0]}") for name in names}
    ).config


# --- tune, rerun, demo --------------------------------------------------------------------------------


def tune(args: argparse.Namespace) -> int:
    """Print a table of trials, and write a settings file with each value's reason."""
    from ptycho_exec.machine.facts import MachineFacts
    from ptycho_torch.tools import tune as tuner

    defaults = {**TRAINING_DEFAULTS, **INFERENCE_DEFAULTS}
    settings, science = configs_of(args, defaults)
    commands.require_launch(settings)
    tuner.refuse_existing(args.out)
    payload = create_training_payload(args.scan, args.out, None, settings, science=science.config)
    tuning = tuner.Tuning(
        args.scan,
        payload.settings,
        payload.science,
        MachineFacts.probe(),
        tuner.seconds_of(args.budget),
        None if args.memory is None else tuner.mib_of(args.memory),
        args.numerics,
        lambda row: print(tuner.line(tuner.table_row(row)), flush=True),
        lambda text: print(f"warning: {text}", flush=True),
    )
    print(tuner.line(("setting", "value", "task", "patterns/s", "MiB", "")), flush=True)
    if not tuner.tune(tuning):
        raise UserError("no trial worked", fix="see the table above; try the command train on its own")
    if any(row.reason == tuner.SPENT for row in tuning.rows):
        print("a longer --budget would try the rest")
    tuner.write_profile(args.out, tuner.profile_text(tuning))
    print(f"wrote {args.out}: use it with --settings {args.out}")
    return 0


def rerun(args: argparse.Namespace) -> int:
    """Repeat a run; files and variables of this place take no part, flags typed here do."""
    given = {name: decode_text(field_specs()[name], texts[-1]) for name, texts in flags_given(args).items()}
    if args.settings or args.profile:
        raise SettingsError(
            "a rerun takes its settings from the manifest",
            where="flag --settings" if args.settings else "flag --profile",
            expected="flags of single settings at most",
            fix="leave it out, or start a new run with train or infer",
        )
    settings = settings_from_manifest(args.run, given)
    if settings.enable_progress_bar is False:
        progress.hide()
    commands.require_launch(settings)
    import_lightning()
    from ptycho_exec.trainer.together import decided_by_first
    from ptycho_torch.tools import rerun as again

    if args.out is None:
        found = decided_by_first(lambda: {"out": str(again.new_name(args.run))}, settings.start_timeout)
        args.out = Path(found["out"])
        sys.argv += ["--out", found["out"]]  # for the processes that Lightning starts by this command
    places = again.Places(args.data, args.test, args.model, args.resume)
    finished = again.rerun(args.run, args.out, places=places, overrides=given, say=print)
    _print_end(finished)
    if not args.verify or not is_rank_zero():
        return 0
    rows = again.verify(args.run, finished.folder)
    _print_verification(rows)
    return 0 if again.repeated(rows) else 1


def demo(args: argparse.Namespace) -> int:
    """Do everything once on a simulated scan, with the commands a user would type."""
    names = (Path(f"demo_run_{number}" if number > 1 else "demo_run") for number in itertools.count(1))
    folder: Path = args.out or next(path for path in names if not path.exists())
    if folder.exists() and any(folder.iterdir()):
        what, fix = f"{folder} exists and is not empty", "choose another --out"
        raise UserError(what, expected="a new directory", fix=fix)
    folder.mkdir(parents=True, exist_ok=True)
    scan, trained, out, refined = (str(folder / name) for name in ("scan.npz", "train", "infer", "refine"))
    given = {name: getattr(args, name) for name in SIMULATION}
    simulation = [
        f"--{name.replace('_', '-')}={value:g}" for name, value in given.items() if value is not None
    ]
    image, page = folder / "comparison.png", folder / "compare.html"
    for step in (
        ["simulate", "--out", scan, *simulation, "--object", args.object],
        ["train", scan, "--out", trained, "--epochs=20", *_typed(args)],
        ["infer", trained, scan, "--out", out],
        ["infer", trained, scan, "--out", refined, f"--refine={DEMO_REFINEMENT}"],
        ["evaluate", out, refined, "--truth", scan, "--picture", str(image)],
        ["compare", trained, out, refined, "--out", str(page)],
    ):
        print(f"\n$ ptycho-torch {' '.join(step)}", flush=True)
        code = main(step)
        if code:
            with suppress(OSError):
                folder.rmdir()  # where the first step left nothing
            return code
    print(f"\nlook at {image}, {folder / 'refine' / 'report.html'} and {page}")
    return 0


def _typed(args: argparse.Namespace) -> list[str]:
    """Return the science and settings flags of a command line, to be passed on."""
    words = [
        f"{field_specs(model)[name].flag}={text}"
        for model in (ExecutionFields, ScienceSettings)
        for name, texts in flags_given(args, model).items()
        for text in texts
    ]
    return words + [f"--{name}={value}" for name in ("settings", "profile") if (value := getattr(args, name))]


# --- what is printed -------------------------------------------------------------------------------------


def _print_settings(
    args: argparse.Namespace, settings: ExecutionSettings, science: ScienceConfig, notes: Sequence[Finding]
) -> None:
    """Print each value that is not its default and where it came from, and what has no effect here."""
    values, specs = flat(science), {**field_specs(ScienceSettings), **field_specs()}
    shown = [
        (name, values[name], origin)
        for name, origin in science.origins.items()
        if origin.kind is not Kind.RECORDED or values[name] != specs[name].default
    ]
    shown += [(name, getattr(settings, name), settings.origins[name]) for name in names_of(settings)]
    rows = [
        row
        for name, value, origin in shown
        if origin.kind is not Kind.DEFAULT
        for row in rows_of(specs[name], value, origin)
    ]
    if rows:
        print("settings that are not the default:")
        print("\n".join(f"  {line}" for line in table(rows)))
    for note in dict.fromkeys([*(note.what for note in notes), *notes_of(args, settings, science)]):
        print(f"note: {note}")
    sys.stdout.flush()


def _print_metrics(scores: Mapping[str, Mapping[str, Any]]) -> None:
    """Print one column of numbers per reconstruction; a name above each where there are several."""
    rows = [("", *scores)] if len(scores) > 1 else []
    for name in next(iter(scores.values())):
        values = [score.get(name) for score in scores.values()]
        if any(isinstance(value, float) for value in values):
            rows.append((name, *(f"{v:.4g}" if isinstance(v, float) else "-" for v in values)))
    print("\n".join(f"  {line}" for line in table(rows)))


def _print_end(finished: Run[Any]) -> None:
    for notice in finished.notices:
        print(f"note: {notice}")
    _print_written(list(dict.fromkeys([finished.folder / "manifest.json", *finished.written])))
    from ptycho_torch.workflows.runs import record_times

    record_times(finished, "report")
    seconds = finished.clock.seconds
    phases = ", ".join(f"{name} {value:.1f} s" for name, value in seconds.items() if value >= 0.05)
    print(f"time: {sum(seconds.values()):.1f} s ({phases})")
    if finished.advice:
        print(f"advice: {finished.advice}")


def _print_verification(rows: Sequence[Compared]) -> None:
    """Print every result, and of the surroundings what differs."""
    changes = [(row, _change(row)) for row in rows]
    results = [
        (row.name, change if row.same else f"DIFFERS: {change}")
        for row, change in changes
        if row.kind == "result"
    ]
    print("verified:\n" + "\n".join(f"  {line}" for line in table(results)))
    others = [(row.name, change) for row, change in changes if row.kind != "result" and not row.same]
    if others:
        print("what else is not as it was:\n" + "\n".join(f"  {line}" for line in table(others)))


def _change(row: Compared) -> str:
    if row.difference:
        text = f"largest difference {row.difference:.1e} of the largest value"
        return f"same on another number of processes: {text}" if row.same else text
    return "same" if row.same else f"{row.before} -> {row.now}"


def _print_written(paths: Sequence[Path]) -> None:
    folder = paths[0].parent
    names = ", ".join(str(path.relative_to(folder)) for path in paths)
    print(f"wrote {folder}: {names}")


# --- the commands ----------------------------------------------------------------------------------------


def _simulation(kind: str, changed: Mapping[str, float]) -> Iterator[Argument]:
    """Yield the arguments that describe a simulated scan; `changed` has defaults that differ."""
    for name, (parse, default, sentence) in SIMULATION.items():
        value = changed.get(name, default)
        flag, text = "--" + name.replace("_", "-"), f"{sentence} [{format_value(value)}]"
        yield argument(flag, type=parse, default=value, help=text)
    yield argument("--object", choices=OBJECTS, default=kind, help=f"what is scanned [{kind}]")


def _science(*configs: type[BaseModel]) -> list[FieldSpec]:
    return [field_specs(ScienceSettings)[name] for config in configs for name in config.model_fields]


def _path(name: str, metavar: str, help_text: str, **options: Any) -> Argument:
    return argument(name, type=Path, metavar=metavar, help=help_text, **options)


_ALL = (DataConfig, ModelConfig, TrainingConfig, InferenceConfig)
_RESUME = _path(
    "--resume",
    "RUN",
    "continue this run, from its last checkpoint, in a new directory; `auto`: continue the run in --out, if "
    "one began there",
)
_WHERE_UNKNOWN = "where the source has none"
COMMANDS = (
    Command(
        simulate,
        "make a scan with a known object, Poisson noise included",
        [
            _path("--out", "FILE", "NPZ file to write", required=True),
            *_simulation("star_and_leaves", {}),
            argument("--scan", choices=["raster", "fermat"], default="raster", help="path of the scan"),
            argument("--modes", type=int, default=1, help="incoherent probe modes [1]"),
            argument("--bad-pixels", type=int, default=0, help="detector pixels that read nonsense [0]"),
            argument("--domain", choices=["intensity", "amplitude"], default="intensity"),
            argument("--seed", type=int, default=0, help="seed of object, jitter and noise [0]"),
            QUIET,
        ],
        usage="--out FILE",
    ),
    Command(
        inspect,
        "print what a scan file holds, and how that was recognised",
        [
            _path("file", "FILE", "NPZ, HDF5 or CXI file"),
            JSON,
            QUIET,
            _path(
                "--plot", "FILE", "also write an image of patterns before and after, mask and positions (PNG)"
            ),
        ],
        usage="FILE",
        science=_science(DataConfig),
    ),
    Command(
        convert,
        "write a scan in another format",
        [
            _path("source", "SOURCE", "file, or directory of a pair of files"),
            _path("target", "TARGET", "new file, or directory for a pair"),
            argument("--to", required=True, metavar="FORMAT", help="format to write; a wrong one lists them"),
            argument("--photon-energy-ev", type=float, help=_WHERE_UNKNOWN),
            argument("--detector-distance-m", type=float, help=_WHERE_UNKNOWN),
            QUIET,
        ],
        usage="SOURCE TARGET --to FORMAT",
        science=_science(DataConfig),
    ),
    Command(
        train,
        "train the network on a scan",
        [
            _path("scan", "SCAN", "the scan to learn from"),
            _path("--out", "RUN", "new directory for the run", required=True),
            _path("--test", "SCAN", "another scan, for validation"),
            _path(
                "--from",
                "RUN",
                "begin with the network of this run or model file (fine-tuning); probe and photon scale are "
                "the new scan's",
                dest="start_from",
            ),
            _RESUME,
        ],
        usage="SCAN --out RUN",
        science=_science(DataConfig, ModelConfig, TrainingConfig),
        settings=True,
        stage="training",
    ),
    Command(
        pretrain,
        "train a network for a beam on simulated objects, for scans that are measured later",
        [
            _path(
                "--probe",
                "PROBE",
                "the beam: a scan, a result, a product, or a file with an array",
                required=True,
            ),
            _path("--out", "RUN", "new directory for the run", required=True),
            argument(
                "--photons",
                type=float,
                nargs=2,
                metavar=("LOW", "HIGH"),
                default=PHOTONS,
                help=f"fewest and most photons of a pattern [{PHOTONS[0]:g} {PHOTONS[1]:g}]",
            ),
            _RESUME,
        ],
        usage="--probe PROBE --out RUN",
        science=_science(ModelConfig, TrainingConfig),
        settings=True,
        stage="training",
    ),
    Command(
        infer,
        "reconstruct a scan with a trained network",
        [
            _path(
                "paths",
                "RUN SCAN [SCAN ...]",
                "run directory or model file of a training, and the scans; with --start flat only scans",
                nargs="+",
            ),
            _path(
                "--out",
                "OUT",
                "new directory for the result; with several scans, for one of each in it",
                required=True,
            ),
        ],
        usage="RUN SCAN [SCAN ...] --out OUT",
        science=_science(DataConfig, InferenceConfig),
        settings=True,
        stage="inference",
    ),
    Command(
        reconstruct,
        "from a scan to a judged object, without a network: what nobody sets is decided from the data",
        [
            _path("scan", "SCAN", "the scan, as it is"),
            _path("--out", "OUT", "new directory for the result", required=True),
        ],
        usage="SCAN --out OUT",
        science=[spec for spec in _science(DataConfig, InferenceConfig) if spec.name != "start"],
        settings=True,
        stage="inference",
    ),
    Command(
        evaluate,
        "compare reconstructions with a known object",
        [
            _path("outs", "OUT", "outputs of `ptycho-torch infer`; several are put side by side", nargs="+"),
            _path("--truth", "SCAN", "scan with the true object", required=True),
            _path("--picture", "FILE", "also write an image of truth and all reconstructions (PNG)"),
            QUIET,
        ],
        usage="OUT [OUT ...] --truth SCAN",
        science=_science(DataConfig),
    ),
    Command(
        compare,
        "put several runs, trainings or results, on one page to look into",
        [
            _path("runs", "RUN", "run directories", nargs="+"),
            _path("--out", "FILE", "page to write [compare.html]", default=Path("compare.html")),
        ],
        usage="RUN RUN [RUN ...] [--out FILE]",
    ),
    Command(
        tune,
        "measure which settings are fastest for a scan on this machine",
        [
            _path("scan", "SCAN", "the scan to work on"),
            _path("--out", "FILE", "[tuned.toml]", default=Path("tuned.toml")),
            argument("--budget", default="60s", metavar="TIME", help="for all trials, as 60s or 5m [60s]"),
            argument("--memory", metavar="SIZE", help="for each trial, as 800M or 2G; none sets no limit"),
            switch("--numerics", "also try what can change results: threads, precision ..."),
        ],
        usage="SCAN",
        science=_science(DataConfig, ModelConfig, TrainingConfig),
        settings=True,
    ),
    Command(
        rerun,
        "repeat a training or inference from its manifest alone",
        [
            _path("run", "RUN", "run directory, or its manifest.json alone"),
            _path("--out", "NEW", "new directory [RUN-rerun, RUN-rerun-2, ...]"),
            switch("--verify", "compare data and results with the run; exit 1 if they differ"),
            _path("--data", "SCAN", "where the scan is now, if it was moved"),
            _path("--test", "SCAN", "the same for the validation scan"),
            _path("--model", "RUN", "the same for the model of an inference, or that a training began with"),
            _path("--resume", "RUN", "the same for the checkpoint it went on from"),
        ],
        usage="RUN [--verify]",
        settings=True,
    ),
    Command(
        demo,
        "simulate, train, infer, refine and evaluate, with images",
        [
            _path("--out", "DIR", "new directory [demo_run, demo_run_2, ...]"),
            *_simulation("siemens_star", DEMO),
        ],
        usage="[--out DIR]",
        # The simulated scan needs no preprocessing.
        science=[
            spec
            for spec in _science(DataConfig, ModelConfig, TrainingConfig)
            if spec.name not in ("N", *Preprocessing.model_fields)
        ],
        settings=True,
    ),
    Command(
        show,
        "print every science value and where it came from; ptycho-exec show prints how to run",
        commands.SHOW_OPTIONS,
        science=_science(*_ALL),
    ),
    Command(
        explain, "print everything about a science field", commands.EXPLAIN_OPTIONS, science=_science(*_ALL)
    ),
    Command(schema, "print the JSON schema of ptycho_torch.toml", commands.SCHEMA_OPTIONS),
    Command(
        init,
        "write a starter ptycho_torch.toml",
        [argument("path", nargs="?", default="ptycho_torch.toml", help="where to write it")],
    ),
    Command(
        ptychodus_settings,
        "write a settings file for Ptychodus with the values of `ptycho-torch train`",
        [_path("--out", "FILE", "where to write it [settings.ini]", default=Path("settings.ini"))],
    ),
    COMPLETION,
)
