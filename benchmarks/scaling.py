"""From one process to two: training by the workflow beside the same loop in plain torch.distributed.

    python benchmarks/scaling.py [--rounds 5] [--batches 8 64] [--steps 40]

Each process has one thread and one CPU. Both sides train the same network on the same samples with the same
optimizer. The efficiency of a side is its patterns per second with two processes over twice those with one,
at the same batch per process; what counts is the ratio of both efficiencies, taken in turn in one session.

Besides, what travels in a step, computed and measured, and what that predicts for more devices: a step of t
seconds on its own and a ring all-reduce of b bytes over n devices, with latency a per hop and bandwidth B,
take t + 2 (n - 1) (a + b / (n B)), so the batch at which devices stop paying follows from t, a and B.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import tempfile
import time
from typing import Any

import common

PATTERNS_PER_SIDE = 64
HARDWARE = {
    "8 GPUs of a node": (8, 10e-6, 150e9),
    "64 nodes of 8 GPUs": (512, 15e-6, 12e9),
}
"""Devices, seconds of one hop, bytes per second: NVLink within a node; 100 Gb/s between nodes."""


def worker(kind: str, batch: int, steps: int) -> None:
    """Train in this process, one of torchrun's, and let the first print its patterns per second."""
    import torch

    from ptycho_exec.settings import ExecutionSettings
    from ptycho_torch.config import DataConfig, ScienceConfig, TrainingConfig
    from ptycho_torch.simulate import simulate_scan

    torch.set_num_threads(1)
    world, rank = int(os.environ["WORLD_SIZE"]), int(os.environ["RANK"])
    os.sched_setaffinity(0, {sorted(os.sched_getaffinity(0))[rank % os.cpu_count()]})
    epochs = 3
    scan = simulate_scan(n=PATTERNS_PER_SIDE, patterns=batch * world * steps, seed=0)
    science = ScienceConfig(data=DataConfig(), training=TrainingConfig(epochs=epochs))
    settings = ExecutionSettings.from_values(
        {"batch_size": batch, "early_stop_patience": None, "enable_progress_bar": False, "num_workers": 0,
         "accelerator": "cpu", "gradient_clip_val": 1.0, "logger_backend": None, "num_threads": 1,
         **({"devices": world, "strategy": "ddp"} if world > 1 else {})}
    )  # fmt: skip
    rate = (by_workflow if kind == "ours" else by_hand)(scan, science, settings)
    if rank == 0:
        print("RATE" + json.dumps(rate), flush=True)
    if kind == "plain":  # torch's end of a gloo group can wait for ever for the interpreter's lock
        os._exit(0)


def by_workflow(scan: Any, science: Any, settings: Any) -> float:
    """Train as `ptycho_torch.train` does; return patterns per second."""
    from ptycho_torch.workflows import components

    result = components.train(scan, None, science, settings)
    return float(result.summary()["samples_per_second"])


def by_hand(scan: Any, science: Any, settings: Any) -> float:
    """Train the same network in a loop of torch.distributed alone; return patterns per second."""
    import torch
    import torch.distributed as dist
    from torch.nn.parallel import DistributedDataParallel

    from ptycho_torch.workflows import components

    torch.manual_seed(0)
    training = components.plan_training(scan, None, science, settings)
    module = components.build_module(training.container, training.samples, science, training.plan.settings)

    class Loss(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.module = module

        def forward(self, batch: Any) -> Any:
            return self.module.loss(batch)[0]

    several = int(os.environ["WORLD_SIZE"]) > 1
    if several:
        dist.init_process_group("gloo")
    network: Any = DistributedDataParallel(Loss(), broadcast_buffers=False) if several else Loss()
    weights = [weight for weight in network.parameters() if weight.requires_grad]
    optimizer = torch.optim.Adam(weights, lr=1e-3, fused=True)
    loader, start, samples = training.loaders()["train"], 0.0, 0
    for epoch in range(science.training.epochs):
        loader.sampler.set_epoch(epoch)
        for batch in loader:
            optimizer.zero_grad()
            network(batch).backward()
            torch.nn.utils.clip_grad_norm_(weights, 1.0)
            optimizer.step()
            if not start:
                start = time.perf_counter()
            else:
                samples += len(batch["index"]) * int(os.environ["WORLD_SIZE"])
    return samples / (time.perf_counter() - start)


def rate(kind: str, world: int, batch: int, steps: int) -> float:
    """Return patterns per second of one side on `world` processes."""
    words = [sys.executable, "-W", "ignore", "-m", "torch.distributed.run", "--nproc-per-node", str(world)]
    words += [__file__, "--worker", kind, str(batch), str(steps)]
    output = common.run(words, env={"OMP_NUM_THREADS": "1"}).check().output
    return float(json.loads(output.partition("RATE")[2].splitlines()[0]))


def bytes_per_step() -> tuple[int, int]:
    """Return the gradients' bytes that the network's parameters make, and what a group really reduced."""
    import torch
    import torch.distributed as dist
    from torch.nn.parallel import DistributedDataParallel

    from ptycho_torch.model import PtychoPINN_Lightning

    module = PtychoPINN_Lightning(data_config={"N": PATTERNS_PER_SIDE})
    weights = [weight for weight in module.parameters() if weight.requires_grad]
    reduced = [0]

    def count(_: object, bucket: Any) -> Any:
        reduced[0] += bucket.buffer().nbytes
        done = torch.futures.Future[torch.Tensor]()
        done.set_result(bucket.buffer())
        return done

    class Touched(torch.nn.Module):
        """Gives each weight a gradient, at no cost."""

        def __init__(self) -> None:
            super().__init__()
            self.module = module

        def forward(self) -> Any:
            return torch.stack([weight.sum() for weight in self.parameters() if weight.requires_grad]).sum()

    count.__annotations__.clear()  # torch compares them with its own classes, not with their names
    with tempfile.NamedTemporaryFile() as file:
        dist.init_process_group("gloo", init_method=f"file://{file.name}x", rank=0, world_size=1)
        network = DistributedDataParallel(Touched())
        network.register_comm_hook(None, count)
        network().backward()
        dist.destroy_process_group()
    return sum(weight.numel() * weight.element_size() for weight in weights), reduced[0]


def smallest_paying_batch(seconds_per_pattern: float, fixed_s: float, size: int, devices: int, hop_s: float,
                          bandwidth: float) -> int:  # fmt: skip
    """Return the batch per device from which a step travels for less than a tenth of its time."""
    travels = 2 * (devices - 1) * (hop_s + size / (devices * bandwidth))
    return max(1, round((9 * travels - fixed_s) / seconds_per_pattern))


def main() -> None:
    """Measure, print and write."""
    if "--worker" in sys.argv:
        kind, batch, steps = sys.argv[sys.argv.index("--worker") + 1 :]
        worker(kind, int(batch), int(steps))
        return
    parser = common.arguments(__doc__, rounds=5)
    parser.add_argument("--batches", type=int, nargs="+", default=[8, 64])
    parser.add_argument("--steps", type=int, default=40, help="steps of an epoch")
    space = parser.parse_args()
    found, rows = {}, []
    for batch in space.batches:
        rates: dict[tuple[str, int], list[float]] = {}
        for _ in range(space.rounds):
            for kind in ("ours", "plain"):
                for world in (1, 2):
                    steps = max(4, space.steps * 8 // batch)
                    rates.setdefault((kind, world), []).append(rate(kind, world, batch, steps))
        efficiency = {
            kind: [two / (2 * one) for one, two in zip(rates[kind, 1], rates[kind, 2], strict=True)]
            for kind in ("ours", "plain")
        }
        ratio = common.ratios(efficiency["plain"], efficiency["ours"])
        found[batch] = {
            "patterns_per_second": {f"{kind} {n}": statistics.median(rates[kind, n]) for kind, n in rates},
            "efficiency": {kind: statistics.median(values) for kind, values in efficiency.items()},
            "ratio": ratio.median,
        }
        for kind in efficiency:
            one, two = (f"{statistics.median(rates[kind, n]):.0f}" for n in (1, 2))
            rows.append((str(batch), kind, one, two, str(common.spread(efficiency[kind]))))
        rows.append((str(batch), "ours / plain", "", "", str(ratio)))
    computed, measured = bytes_per_step()
    common.print_machine()
    common.print_table(("batch", "loop", "1 process", "2 processes", "efficiency"), rows)
    print(f"\ngradients of a step: {computed} bytes computed, {measured} measured")
    for name, (devices, hop_s, bandwidth) in HARDWARE.items():
        travels = 2 * (devices - 1) * (hop_s + computed / (devices * bandwidth))
        print(f"{name}: a ring takes {1e3 * travels:.2f} ms a step; a step of ten times that pays")
    common.write_json("scaling", {"batches": found, "bytes": [computed, measured]}, space.json)


if __name__ == "__main__":
    main()
