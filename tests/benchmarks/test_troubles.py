"""One scan of each kind of trouble: it is named, and what the finding says makes it a good scan again."""

from pathlib import Path

import numpy as np
import pytest

KINDS = [
    "background",
    "detector-units",
    "negative",
    "gap-largest",
    "gap-nan",
    "gap-zero",
    "beam-stop",
    "hot-pixels",
    "off-center",
    "corner",
    "meters",
    "millimeters",
    "micrometers",
    "nanometers",
    "far-position",
    "no-overlap",
    "dark",
    "half-precision",
    "single-values",
    "broken-frames",
]


def test_the_kinds_are_those_of_the_benchmark() -> None:
    import troubles

    assert set(KINDS) == set(troubles.KINDS)


@pytest.mark.parametrize("kind", KINDS)
def test_a_trouble_is_named_and_its_remedy_works(kind: str, tmp_path: Path) -> None:
    import troubles

    ((_, arrays),) = troubles.troubled(1, 0, 3, [kind])
    if kind == "background":  # one that is not lost among the counts
        arrays["patterns"] = arrays["patterns"] + np.uint32(20)
    outcome = troubles.judge(kind, arrays, tmp_path, reconstruct=False)
    assert outcome.named, outcome
    if not troubles.KINDS[kind].restores:
        return
    scan, options = troubles.remedy(tmp_path / "scan.npz")
    assert scan is not None, options
    assert [row.what for row in scan.findings if row.level != "note" and row.code != "gaps"] == []
    truth, shift = arrays["truth"], np.array(scan.position_shift_px)
    kept = np.arange(len(truth)) if scan.scan_index is None else scan.scan_index
    np.testing.assert_allclose(scan.positions_px - shift, truth.positions_px[kept], atol=1e-6)
    mine, true = (part.amplitude(range(0, 40, 8)) * scan.good_pixels for part in (scan, truth.subset(kept)))
    assert np.vdot(mine, true) > 0.97 * np.linalg.norm(mine) * np.linalg.norm(true)


def test_good_scans_are_left_alone(tmp_path: Path) -> None:
    import troubles

    for kind, arrays in troubles.troubled(0, 4, 5, []):
        assert troubles.judge(kind, arrays, tmp_path, reconstruct=False).said == []
