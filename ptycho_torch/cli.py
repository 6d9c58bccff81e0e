"""`ptycho-torch`: simulate, inspect, convert, train, infer, evaluate, tune, rerun, demo.

Every execution setting and every science field is a flag. Heavy packages are imported by the command that
needs them, after its arguments and settings are known to be right.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ptycho_exec.cli.commands import resolve_from, table
from ptycho_exec.cli.flags import Parser, add_settings_flags, flags_given, run
from ptycho_exec.errors import SettingsError, UserError, redact
from ptycho_exec.fields.spec import decode_text, field_specs, format_value
from ptycho_exec.machine.openmp import choose_wait_policy
from ptycho_exec.settings import ExecutionSettings
from ptycho_exec.sources.origins import Kind
from ptycho_torch.config import DataConfig, InferenceConfig, ModelConfig, TrainingConfig
from ptycho_torch.quick_start import import_lightning
from ptycho_torch.science_flags import add_science_flags, science_given

if TYPE_CHECKING:
    from ptycho_torch.tools.rerun import Compared
    from ptycho_torch.workflows.runs import Run

STARTED = time.perf_counter()


def main(argv: Sequence[str] | None = None) -> int:
    """Run `ptycho-torch`; return its exit code."""
    return run(build_parser(), argv, _handle)


def _handle(args: argparse.Namespace) -> int:
    choose_wait_policy()  # before the command imports torch
    code: int = args.handler(args)
    return code


def build_parser() -> Parser:
    """Return the parser of all commands."""
    parser = Parser(
        prog="ptycho-torch", description="Physics-informed reconstruction of ptychographic scans."
    )
    commands = parser.add_subparsers(title="commands", dest="command", required=True, metavar="COMMAND")
    for add in ADD_COMMANDS:
        command = add(commands)
        command.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser


def _command(
    commands: Any, handler: Callable[[argparse.Namespace], int], help_text: str, usage: str
) -> Parser:
    usage = f"ptycho-torch {handler.__name__} {usage} [options]"
    command: Parser = commands.add_parser(
        handler.__name__, help=help_text, description=help_text, usage=usage
    )
    command.set_defaults(handler=handler)
    return command


# --- simulate and inspect --------------------------------------------------------------------------------


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
"""A test chart under a structured beam, densely scanned: what a network alone reconstructs in a minute."""
DEMO_REFINEMENT = 5
"""Epochs of refinement in the demo: seconds, and the network's object becomes sharp."""


def _add_simulate_flags(command: Parser, kind: str, changed: Mapping[str, float]) -> None:
    for name, (parse, default, sentence) in SIMULATION.items():
        value = changed.get(name, default)
        flag = "--" + name.replace("_", "-")
        command.add_argument(flag, type=parse, default=value, help=f"{sentence} [{format_value(value)}]")
    command.add_argument("--object", choices=OBJECTS, default=kind, help=f"what is scanned [{kind}]")


def _add_simulate(commands: Any) -> Parser:
    command = _command(
        commands, simulate, "make a scan with a known object, Poisson noise included", "--out FILE"
    )
    command.add_argument("--out", type=Path, required=True, metavar="FILE", help="NPZ file to write")
    _add_simulate_flags(command, "star_and_leaves", {})
    command.add_argument("--scan", choices=["raster", "fermat"], default="raster", help="path of the scan")
    command.add_argument("--modes", type=int, default=1, help="incoherent probe modes [1]")
    command.add_argument("--bad-pixels", type=int, default=0, help="detector pixels that read nonsense [0]")
    command.add_argument("--domain", choices=["intensity", "amplitude"], default="intensity")
    command.add_argument("--seed", type=int, default=0, help="seed of object, jitter and noise [0]")
    return command


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
    print(
        f"wrote {path}: {len(scan)} patterns of {args.n} x {args.n} ({args.domain}), "
        f"object {height} x {width}"
    )
    return 0


def _add_inspect(commands: Any) -> Parser:
    command = _command(commands, inspect, "tell what a scan file holds, and how that was found out", "FILE")
    command.add_argument("file", type=Path, metavar="FILE", help="NPZ, HDF5 or CXI file")
    command.add_argument("--json", action="store_true", help="print stable JSON")
    add_science_flags(command, DataConfig)
    return command


def inspect(args: argparse.Namespace) -> int:
    """Print a scan's detection report."""
    from ptycho_torch.data.read import read_scan

    scan = read_scan(args.file, DataConfig(**science_given(args)))
    if args.json:
        print(json.dumps(scan.report, indent=2))
        return 0
    rows = [(name, _plain_text(value)) for name, value in scan.report.items() if name != "warnings"]
    print("\n".join(table(rows)))
    for warning in scan.report.get("warnings", ()):
        print(f"warning: {warning}")
    return 0


def _plain_text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_plain_text(item)}" for name, item in value.items())
    if isinstance(value, (list, tuple)):
        return " x ".join(_plain_text(item) for item in value)
    return format_value(value)


def _add_convert(commands: Any) -> Parser:
    command = _command(commands, convert, "write a scan in another format", "SOURCE TARGET --to FORMAT")
    command.add_argument("source", type=Path, metavar="SOURCE", help="file, or directory of a pair of files")
    command.add_argument("target", type=Path, metavar="TARGET", help="new file, or directory for a pair")
    command.add_argument(
        "--to", required=True, metavar="FORMAT", help="format to write; a wrong one lists them"
    )
    command.add_argument("--photon-energy-ev", type=float, help="where the source does not say")
    command.add_argument("--detector-distance-m", type=float, help="where the source does not say")
    command.add_argument(
        "--pixel-size-m", type=float, help="side of an object pixel, where the source does not say"
    )
    add_science_flags(command, DataConfig)
    return command


def convert(args: argparse.Namespace) -> int:
    """Convert a scan, and print what was written."""
    from ptycho_torch.data.convert import convert as write

    path = write(
        args.source,
        args.target,
        args.to,
        DataConfig(**science_given(args)),
        photon_energy_eV=args.photon_energy_ev,
        detector_distance_m=args.detector_distance_m,
        pixel_size_m=args.pixel_size_m,
    )
    print(f"wrote {path}")
    return 0


# --- train, infer, evaluate ------------------------------------------------------------------------------


def _add_train(commands: Any) -> Parser:
    command = _command(commands, train, "train the network on a scan", "SCAN --out RUN")
    command.add_argument("scan", type=Path, metavar="SCAN", help="the scan to learn from")
    command.add_argument("--out", type=Path, required=True, metavar="RUN", help="new directory for the run")
    command.add_argument("--test", type=Path, metavar="SCAN", help="another scan, for validation")
    command.add_argument(
        "--resume", type=Path, metavar="RUN", help="continue from this run's last checkpoint"
    )
    add_science_flags(command, DataConfig, ModelConfig, TrainingConfig)
    add_settings_flags(command)
    return command


def train(args: argparse.Namespace) -> int:
    """Train, and leave a run directory."""
    from ptycho_torch.factory import TRAINING_DEFAULTS, create_training_payload

    settings = ExecutionSettings.from_resolution(resolve_from(args, dict(TRAINING_DEFAULTS)))
    overrides = science_given(args) | ({"test_data_file": args.test} if args.test else {})
    payload = create_training_payload(args.scan, args.out, overrides, settings)
    _print_settings(settings)
    import_lightning()
    from ptycho_torch.workflows import runs

    finished = runs.train(payload, resume=args.resume, say=print)
    _print_training(finished)
    return 0


def _add_infer(commands: Any) -> Parser:
    command = _command(commands, infer, "reconstruct a scan with a trained network", "RUN SCAN --out OUT")
    command.add_argument(
        "paths",
        type=Path,
        nargs="+",
        metavar="RUN SCAN",
        help="run directory or model file of a training, and the scan; with --start flat only the scan",
    )
    command.add_argument(
        "--out", type=Path, required=True, metavar="OUT", help="new directory for the result"
    )
    add_science_flags(command, DataConfig, InferenceConfig)
    add_settings_flags(command)
    return command


def infer(args: argparse.Namespace) -> int:
    """Reconstruct, and leave an output directory."""
    from ptycho_torch.factory import INFERENCE_DEFAULTS, create_inference_payload

    settings = ExecutionSettings.from_resolution(resolve_from(args, dict(INFERENCE_DEFAULTS)))
    *trained, scan = args.paths
    if len(trained) > 1:
        raise UserError(
            f"{len(args.paths)} paths are given", expected="RUN SCAN", fix="name one run and one scan"
        )
    model = trained[0] if trained else None
    payload = create_inference_payload(model, scan, args.out, science_given(args), settings)
    _print_settings(settings)
    import_lightning()
    from ptycho_torch.workflows import runs

    finished = runs.infer(payload, say=print)
    scored = _print_scores(finished.folder, payload.test_data_file)
    _print_end(finished, scored)
    return 0


def _add_evaluate(commands: Any) -> Parser:
    command = _command(
        commands, evaluate, "compare reconstructions with a known object", "OUT [OUT ...] --truth SCAN"
    )
    command.add_argument(
        "outs",
        type=Path,
        nargs="+",
        metavar="OUT",
        help="output directories of `ptycho-torch infer`; several are put side by side",
    )
    command.add_argument(
        "--truth", type=Path, required=True, metavar="SCAN", help="scan with the true object"
    )
    command.add_argument(
        "--picture", type=Path, metavar="FILE", help="also draw truth and all reconstructions in one PNG"
    )
    return command


def evaluate(args: argparse.Namespace) -> int:
    """Write a metrics.json into each directory and print them side by side."""
    from ptycho_torch.workflows.runs import compare

    if args.picture is not None and args.picture.exists():
        raise UserError(f"{args.picture} exists already", expected="a new file", fix="choose another name")
    results, written = compare(args.outs, args.truth, args.picture)
    _print_metrics({name: result.to_json() for name, result in results.items()})
    for folder in dict.fromkeys(path.parent for path in written):
        _print_written([path for path in written if path.parent == folder])
    return 0


def _print_scores(folder: Path, scan: Path) -> Sequence[Path]:
    """Score at once where the scan knows its object; a measured scan has none, which is no error."""
    from ptycho_torch.workflows.runs import has_truth, score

    if not has_truth(scan):
        return ()
    result, written = score(folder, scan)
    _print_metrics({"reconstruction": result.to_json()})
    return written


# --- tune ------------------------------------------------------------------------------------------------


def _add_tune(commands: Any) -> Parser:
    command = _command(
        commands, tune, "measure which settings are fastest for a scan on this machine", "SCAN"
    )
    command.add_argument("scan", type=Path, metavar="SCAN", help="the scan to work on")
    command.add_argument("--out", type=Path, default=Path("tuned.toml"), metavar="FILE", help="[tuned.toml]")
    command.add_argument("--budget", default="60s", metavar="TIME", help="for all trials, as 60s or 5m [60s]")
    command.add_argument("--memory", metavar="SIZE", help="for each trial, as 800M or 2G; none sets no limit")
    command.add_argument(
        "--numerics", action="store_true", help="also try what can change results: threads, precision ..."
    )
    add_science_flags(command, DataConfig, ModelConfig, TrainingConfig)
    add_settings_flags(command)
    return command


def tune(args: argparse.Namespace) -> int:
    """Print a table of trials, and write a settings file with each value's reason."""
    from ptycho_exec.machine.facts import MachineFacts
    from ptycho_torch.factory import INFERENCE_DEFAULTS, TRAINING_DEFAULTS, create_training_payload
    from ptycho_torch.tools import tune as tuner

    settings = ExecutionSettings.from_resolution(
        resolve_from(args, {**TRAINING_DEFAULTS, **INFERENCE_DEFAULTS})
    )
    tuner.refuse_existing(args.out)
    payload = create_training_payload(args.scan, args.out, science_given(args), settings)
    tuning = tuner.Tuning(
        args.scan,
        payload.settings,
        payload.science,
        MachineFacts.probe(),
        tuner.seconds_of(args.budget),
        None if args.memory is None else tuner.mib_of(args.memory),
        args.numerics,
        lambda row: print(tuner.line(tuner.table_row(row)), flush=True),
    )
    print(tuner.line(("setting", "value", "task", "patterns/s", "MiB", "")), flush=True)
    if not tuner.tune(tuning):
        raise UserError("no trial worked", fix="see the table above; try the command train on its own")
    if any(row.reason == tuner.SPENT for row in tuning.rows):
        print("a longer --budget would try the rest")
    tuner.write_profile(args.out, tuner.profile_text(tuning))
    print(f"wrote {args.out}: use it with --settings {args.out}")
    return 0


# --- rerun -----------------------------------------------------------------------------------------------


def _add_rerun(commands: Any) -> Parser:
    command = _command(
        commands, rerun, "repeat a training or inference from its manifest alone", "RUN [--verify]"
    )
    command.add_argument("run", type=Path, metavar="RUN", help="run directory, or its manifest.json alone")
    command.add_argument(
        "--out", type=Path, metavar="NEW", help="new directory [RUN-rerun, RUN-rerun-2, ...]"
    )
    command.add_argument(
        "--verify", action="store_true", help="compare data and results with the run; exit 1 if they differ"
    )
    command.add_argument("--data", type=Path, metavar="SCAN", help="where the scan is now, if it was moved")
    command.add_argument("--test", type=Path, metavar="SCAN", help="the same for the validation scan")
    command.add_argument("--model", type=Path, metavar="RUN", help="the same for the model of an inference")
    command.add_argument(
        "--resume", type=Path, metavar="RUN", help="the same for the checkpoint it went on from"
    )
    add_settings_flags(command)
    return command


def rerun(args: argparse.Namespace) -> int:
    """Repeat a run; files and variables of this place take no part, flags typed here do."""
    given = {name: decode_text(field_specs()[name], text) for name, text in flags_given(args).items()}
    if args.settings or args.profile:
        raise SettingsError(
            "a rerun takes its settings from the manifest",
            where="flag --settings" if args.settings else "flag --profile",
            expected="flags of single settings at most",
            fix="leave it out, or start a new run with train or infer",
        )
    import_lightning()
    from ptycho_torch.tools import rerun as again

    places = again.Places(args.data, args.test, args.model, args.resume)
    finished = again.rerun(args.run, args.out, places=places, overrides=given, say=print)
    _print_end(finished)
    if not args.verify:
        return 0
    rows = again.verify(args.run, finished.folder)
    _print_verification(rows)
    return 0 if again.repeated(rows) else 1


# --- demo ------------------------------------------------------------------------------------------------


def _add_demo(commands: Any) -> Parser:
    command = _command(commands, demo, "simulate, train, infer, refine and evaluate, with pictures", "")
    command.add_argument("--out", type=Path, metavar="DIR", help="new directory [demo_run, demo_run_2, ...]")
    _add_simulate_flags(command, "siemens_star", DEMO)
    add_science_flags(command, DataConfig, ModelConfig, TrainingConfig, but=("N",))
    add_settings_flags(command)
    return command


def demo(args: argparse.Namespace) -> int:
    """Do everything once on a simulated scan, with the commands a user would type."""
    folder: Path = args.out or _free_name("demo_run")
    if folder.exists() and any(folder.iterdir()):
        raise UserError(
            f"{folder} exists and is not empty", expected="a new directory", fix="choose another --out"
        )
    folder.mkdir(parents=True, exist_ok=True)
    for step in _demo_steps(args, folder):
        print(f"\n$ ptycho-torch {' '.join(step)}", flush=True)
        code = main(step)
        if code:
            return code
    print(f"\nlook at {folder / 'comparison.png'} and {folder / 'infer' / 'report.html'}")
    return 0


def _demo_steps(args: argparse.Namespace, folder: Path) -> list[list[str]]:
    """Return the demo's commands: the network alone, the network refined, and both beside the truth."""
    scan, trained, out, refined = (str(folder / name) for name in ("scan.npz", "train", "infer", "refine"))
    given = {name: getattr(args, name) for name in SIMULATION}
    made = [f"--{name.replace('_', '-')}={value:g}" for name, value in given.items() if value is not None]
    picture = str(folder / "comparison.png")
    return [
        ["simulate", "--out", scan, *made, "--object", args.object],
        ["train", scan, "--out", trained, "--epochs=20", *_typed(args)],
        ["infer", trained, scan, "--out", out],
        ["infer", trained, scan, "--out", refined, f"--refine={DEMO_REFINEMENT}"],
        ["evaluate", out, refined, "--truth", scan, "--picture", picture],
    ]


def _free_name(base: str) -> Path:
    names = (Path(base if number == 1 else f"{base}_{number}") for number in range(1, 10_000))
    return next(path for path in names if not path.exists())


def _typed(args: argparse.Namespace) -> list[str]:
    """Return the science and settings flags of a command line, to be handed on."""
    words = [f"{field_specs()[name].flag}={text}" for name, text in flags_given(args).items()]
    words += [f"--{name.replace('_', '-')}={value}" for name, value in science_given(args, text=True).items()]
    words += [f"--{name}={value}" for name in ("settings", "profile") if (value := getattr(args, name))]
    return words


ADD_COMMANDS = (
    _add_simulate,
    _add_inspect,
    _add_convert,
    _add_train,
    _add_infer,
    _add_evaluate,
    _add_tune,
    _add_rerun,
    _add_demo,
)


# --- what is printed -------------------------------------------------------------------------------------


def _print_settings(settings: ExecutionSettings) -> None:
    """Print each setting that is not its default, and where it came from."""
    rows = [
        (name, format_value(redact(getattr(settings, name))), settings.origins[name].describe())
        for name in field_specs()
        if settings.origins[name].kind is not Kind.DEFAULT
    ]
    if rows:
        print("settings that are not the default:")
        print("\n".join(f"  {line}" for line in table(rows)))
    sys.stdout.flush()


def _print_training(finished: Run[Any]) -> None:
    trained = finished.results["history"]
    for name in ("train_loss", "val_loss"):
        if trained.get(name):
            print(f"{name}: {trained[name][0]:.4g} -> {trained[name][-1]:.4g} in {len(trained[name])} epochs")
    _print_end(finished)


def _print_metrics(scores: Mapping[str, Mapping[str, Any]]) -> None:
    """Print one column of numbers per reconstruction; a name above each where there are several."""
    rows = [("", *scores)] if len(scores) > 1 else []
    for name in next(iter(scores.values())):
        values = [score.get(name) for score in scores.values()]
        if any(isinstance(value, float) for value in values):
            rows.append((name, *(f"{v:.4g}" if isinstance(v, float) else "-" for v in values)))
    print("\n".join(f"  {line}" for line in table(rows)))


def _print_end(finished: Run[Any], more: Sequence[Path] = ()) -> None:
    for notice in finished.notices:
        print(f"note: {notice}")
    _print_written(list(dict.fromkeys([finished.folder / "manifest.json", *finished.written, *more])))
    phases = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in finished.seconds.items())
    print(f"time: {time.perf_counter() - STARTED:.1f} s since start ({phases})")
    if finished.advice:
        print(f"advice: {finished.advice}")


def _print_verification(rows: Sequence[Compared]) -> None:
    """Print every result, and of the surroundings what differs."""
    told = [(row.name, "same" if row.same else f"DIFFERS: {row.before} -> {row.now}")
            for row in rows if row.kind == "result"]  # fmt: skip
    print("verified:\n" + "\n".join(f"  {line}" for line in table(told)))
    changed = [
        (row.name, f"{row.before} -> {row.now}") for row in rows if row.kind != "result" and not row.same
    ]
    if changed:
        print("what else is not as it was:\n" + "\n".join(f"  {line}" for line in table(changed)))


def _print_written(paths: Sequence[Path]) -> None:
    folder = paths[0].parent
    names = ", ".join(str(path.relative_to(folder)) for path in paths)
    print(f"wrote {folder}: {names}")
