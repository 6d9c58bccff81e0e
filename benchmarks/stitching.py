"""How fast are stitching and grouping? Patches per second, whole and cropped; seconds for 100,000 positions.

python benchmarks/stitching.py
python benchmarks/stitching.py --n 128 --patches 2048
"""

from __future__ import annotations

import argparse
import resource

import common
import numpy as np
import torch

from ptycho_torch.data.grouping import group_neighbors
from ptycho_torch.reconstruction.stitch import Stitcher

BATCH = 256
KINDS = {
    "whole patches": {},
    "whole patches, edges padded": {"pad_eval": True},
    "central half": {"middle_trim": 0.5},
    "central quarter": {"middle_trim": 0.25},
}
METHODS = ("nearest", "distance", "quadrant")


def main() -> None:
    parser = common.arguments(__doc__)
    parser.add_argument("--n", type=int, default=64, help="side of a patch [64]")
    parser.add_argument("--patches", type=int, default=4096, help="patches that are placed [4096]")
    parser.add_argument("--positions", type=int, default=100_000, help="positions that are grouped [100000]")
    parser.add_argument("--threads", type=int, default=1, help="threads of the processor [1]")
    space = parser.parse_args()
    torch.set_num_threads(space.threads)
    common.print_machine()
    stitching = {kind: common.spread(_rates(space, kind)) for kind in KINDS}
    common.print_table(
        (f"stitching {space.n} x {space.n}, {space.threads} thread", "patches/s"),
        [(kind, str(rate)) for kind, rate in stitching.items()],
    )
    grouping = {method: common.spread(_grouping_seconds(space, method)) for method in METHODS}
    common.print_table(
        (f"grouping {space.positions} positions, gridsize 2", "seconds"),
        [(method, str(seconds)) for method, seconds in grouping.items()],
    )
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"peak memory of this process: {peak:.0f} MiB")
    results = {"patches_per_second": stitching, "grouping_seconds": grouping, "peak_mib": peak}
    common.write_json("stitching", {**results, "n": space.n, "threads": space.threads}, space.json)


def _rates(space: argparse.Namespace, kind: str) -> list[float]:
    """Return patches per second of each round: sub-pixel positions, probe-like weights, complex patches."""
    n, side = space.n, 8 * space.n
    generator = torch.Generator().manual_seed(0)
    patches = torch.randn(BATCH, n, n, dtype=torch.complex64, generator=generator)
    positions = n + torch.rand(space.patches, 2, dtype=torch.float64, generator=generator) * (side - 2 * n)
    weights = torch.rand(n, n, generator=generator)
    options = {k: v if k == "pad_eval" else int(v * n) for k, v in KINDS[kind].items()}

    def stitch() -> None:
        stitcher = Stitcher((side, side), n, weights=weights, **options)  # type: ignore[arg-type]
        for part in torch.split(positions, BATCH):
            stitcher.add(patches[: len(part)], part)
        stitcher.result()

    return [space.patches / seconds for seconds in common.timed(stitch, space.rounds)]


def _grouping_seconds(space: argparse.Namespace, method: str) -> list[float]:
    side = np.sqrt(space.positions) * 3
    positions = np.random.default_rng(0).uniform(0, side, size=(space.positions, 2))
    window = {"min_distance_px": 1.0, "max_distance_px": 30.0} if method == "distance" else {}

    def group() -> None:
        group_neighbors(positions, gridsize=2, method=method, neighbor_count=8, **window)  # type: ignore[arg-type]

    return common.timed(group, space.rounds)


if __name__ == "__main__":
    main()
