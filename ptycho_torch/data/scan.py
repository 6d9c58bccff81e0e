"""One ptychographic scan in the units and conventions that the rest of the package uses.

Shape legend: M scan positions, N x N detector pixels, P incoherent probe modes, H x W object canvas,
B rows of a batch.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ptycho_exec.errors import Finding
from ptycho_torch.data.storage.patterns import Domain, Patterns, select_rows, to_amplitude
from ptycho_torch.display import facts_html, facts_text, new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PLOTTED = 64
"""At most so many patterns, spread over the scan, give the mean that is plotted."""

# h * c in eV m (CODATA 2018, exact).
HC_EV_M = 1.239841984332002e-06


@dataclass(frozen=True, eq=False, repr=False)
class ScanData:
    """Diffraction patterns with the positions, probe and object that belong to them.

    A position is the sub-pixel canvas index of a patch's center (N-1)/2: pixel k of a patch lies at canvas
    index `position - (N-1)/2 + k`. The zero frequency of a pattern is at index N/2.

    Attributes:
        patterns: (M, N, N) in the stored dtype, an array or a stack that is read one batch at a time.
        domain: what the stored numbers are; amplitude is the square root of intensity (counts).
        positions_px: (M, 2) float64, [y, x] in pixels of the object canvas.
        probe: (P, N, N) complex64 or none.
        object_guess: (H, W) complex64 or none; truth of a simulation, or an earlier reconstruction.
        good_pixels: (N, N) bool, True where the detector can be trusted.
        canvas_shape: (H, W), that of the object guess, else just large enough for every patch.
        position_shift_px: [y, x] that was added to the file's positions to get `positions_px`.
        labels: (M, N, N) complex truth of each patch, or none.
        scan_index: (M,) int64, the index of each pattern in its file's own numbering.
        report: what was detected and why, JSON-able.
    """

    patterns: Patterns
    domain: Domain
    positions_px: NDArray[np.float64]
    probe: NDArray[np.complex64] | None
    object_guess: NDArray[np.complex64] | None
    good_pixels: NDArray[np.bool_]
    canvas_shape: tuple[int, int]
    position_shift_px: tuple[float, float] = (0.0, 0.0)
    labels: Patterns | None = None
    scan_index: NDArray[np.int64] | None = None
    pixel_size_m: float | None = None
    """Side of an object pixel."""
    photon_energy_eV: float | None = None  # noqa: N815
    detector_distance_m: float | None = None
    detector_pixel_size_m: float | None = None
    object_center_m: tuple[float, float] = (0.0, 0.0)
    """[y, x] of the canvas center ((H-1)/2, (W-1)/2) in the stage's frame."""
    name: str = ""
    source: Path | None = None
    sha256: str = ""
    report: dict[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.positions_px)

    @property
    def n_pixels(self) -> int:
        """N, the side of a diffraction pattern."""
        return int(self.patterns.shape[1])

    @property
    def wavelength_m(self) -> float | None:
        """Photon wavelength, from the photon energy."""
        return HC_EV_M / self.photon_energy_eV if self.photon_energy_eV else None

    def middle_rows(self, count: int) -> NDArray[np.int64]:
        """Return the rows of the patterns nearest the middle of the scan, nearest first."""
        distance = np.linalg.norm(self.positions_px - np.median(self.positions_px, axis=0), axis=1)
        return np.argsort(distance, kind="stable")[:count].astype(np.int64)

    @property
    def bad_flat(self) -> NDArray[np.intp]:
        """Flat indices of the bad pixels within a pattern."""
        return np.flatnonzero(~self.good_pixels)

    @property
    def origins_px(self) -> NDArray[np.float64]:
        """(M, 2) sub-pixel canvas index of each patch's pixel [0, 0]."""
        return self.positions_px - (self.n_pixels - 1) / 2

    @property
    def holds_counts(self) -> bool:
        """True where the patterns are counts, whose noise is known: whole numbers of an intensity.

        Many files hold them as floats; then those that were looked at tell.
        """
        whole = np.issubdtype(self.patterns.dtype, np.integer) or self.report.get("whole_numbers", False)
        return self.domain == "intensity" and bool(whole)

    @property
    def findings(self) -> tuple[Finding, ...]:
        """What is odd about the scan, or about those that it is made of."""
        reports = [self.report, *self.report.get("scans", ())]
        return tuple(Finding(**row) for report in reports for row in report.get("findings", ()))

    def amplitude(self, indices: ArrayLike) -> NDArray[np.float32]:
        """Return (B, N, N) float32 measured amplitude in the file's units, bad pixels 0."""
        raw: NDArray[Any] = self.patterns[np.asarray(indices, dtype=np.int64)]
        return to_amplitude(raw, self.domain, self.bad_flat)

    def label_patches(self, indices: ArrayLike) -> NDArray[np.complex64]:
        """Return (B, N, N) complex64 true patches.

        Raises:
            ValueError: when the scan has no labels.
        """
        if self.labels is None:
            raise ValueError("this scan has no per-pattern labels")
        return np.asarray(self.labels[np.asarray(indices, dtype=np.int64)], dtype=np.complex64)

    def subset(self, indices: ArrayLike) -> ScanData:
        """Return the scan of the given patterns, on the same canvas; large stacks stay in their file."""
        rows = np.asarray(indices, dtype=np.int64)
        return replace(
            self,
            patterns=select_rows(self.patterns, rows),
            positions_px=self.positions_px[rows],
            labels=None if self.labels is None else select_rows(self.labels, rows),
            scan_index=None if self.scan_index is None else self.scan_index[rows],
            report={**self.report, "patterns_used": len(rows)},
        )

    def _facts(self) -> dict[str, Any]:
        """Return what is to be known of the scan at a glance."""
        n, (height, width) = self.n_pixels, self.canvas_shape
        modes = None if self.probe is None else f"{len(self.probe)} mode{'s' if len(self.probe) > 1 else ''}"
        return {
            "patterns": f"{len(self)} of {n} x {n} ({self.domain}, {self.patterns.dtype})",
            "canvas": f"{height} x {width}",
            "probe": modes or "none",
            "object": "none" if self.object_guess is None else "in the file",
            "bad pixels": int((~self.good_pixels).sum()) or None,
            "pixel size (nm)": None if self.pixel_size_m is None else self.pixel_size_m * 1e9,
            "photon energy (keV)": None if self.photon_energy_eV is None else self.photon_energy_eV / 1e3,
            "file": self.source,
            **{f"warning {number}": finding.what for number, finding in enumerate(self.findings, 1)},
        }

    def __repr__(self) -> str:
        return facts_text("ScanData", self._facts())

    def _repr_html_(self) -> str:
        return facts_html(f"scan {self.name}".rstrip(), self._facts())

    def plot(self) -> Figure:
        """Return a figure of the mean pattern, on a logarithmic scale, and of the positions."""
        from matplotlib.colors import LogNorm

        rows = np.unique(np.linspace(0, len(self) - 1, num=min(len(self), PLOTTED)).astype(np.int64))
        mean = np.square(self.amplitude(rows)).mean(axis=0)
        shown = np.ma.masked_array(mean, ~self.good_pixels)
        top = float(shown.max()) or 1.0
        figure = new_figure(9.0, 4.2)
        pattern, places = figure.subplots(1, 2)
        low = max(top * 1e-5, float(mean[mean > 0].min(initial=top)) / 2)
        image = pattern.imshow(shown, norm=LogNorm(low, top, clip=True))
        figure.colorbar(image, ax=pattern, shrink=0.8)
        pattern.set_title(f"mean of {len(rows)} patterns")
        places.plot(self.positions_px[:, 1], self.positions_px[:, 0], ".", markersize=3)
        places.set(xlim=(0, self.canvas_shape[1]), ylim=(self.canvas_shape[0], 0), aspect="equal")
        places.set(xlabel="x, pixels", ylabel="y, pixels", title=f"{len(self)} positions on the object")
        return figure
