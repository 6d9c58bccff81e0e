"""The gauge of a probe: its center, rim, and modes."""

from __future__ import annotations

import torch

from ptycho_torch.physics import forward as physics
from ptycho_torch.reconstruction import probe_gauge
from ptycho_torch.simulate import make_probe


def probe(modes: int = 1) -> torch.Tensor:
    return torch.from_numpy(make_probe(32, 1e4, modes, None, 3.0, 0.0))


def test_the_center_is_found_also_where_the_probe_wraps() -> None:
    start = probe_gauge.center_px(probe())
    for move in (3, -7, 14):
        moved = probe_gauge.center_px(torch.roll(probe(), move, dims=-1))
        torch.testing.assert_close(
            moved - start, torch.tensor([0.0, float(move)], dtype=torch.float64), atol=0.05, rtol=0
        )


def test_rolling_repeats_the_edge_and_moves_the_rest() -> None:
    image = torch.arange(12.0).reshape(3, 4)
    moved = probe_gauge.roll(image, (1, -1))
    assert torch.equal(moved[1:, :-1], image[:-1, 1:])
    assert torch.equal(moved[0], moved[1])
    assert torch.equal(moved[:, -1], torch.stack([image[0, 3], image[0, 3], image[1, 3]]))


def test_the_rim_is_a_sixteenth_all_round() -> None:
    rim = probe_gauge.rim_of(probe())
    assert int((~rim).sum()) == 28**2
    assert not rim[2:30, 2:30].any()
    assert probe_gauge.rim_part(probe(), rim) < 1e-3
    assert probe_gauge.rim_part(torch.ones(1, 32, 32, dtype=torch.complex64), rim) > 0.2


def test_modes_are_mixed_to_be_orthogonal_and_give_the_same_patterns() -> None:
    generator = torch.Generator().manual_seed(0)
    modes = torch.randn(3, 32, 32, dtype=torch.complex64, generator=generator) * probe().abs()
    patches = torch.randn(2, 1, 32, 32, dtype=torch.complex64, generator=generator)
    mixed = torch.tensordot(probe_gauge.orthogonal_modes(modes), modes, dims=1)
    gram = mixed.flatten(1) @ mixed.flatten(1).mH
    powers = gram.diagonal().real
    assert float((gram - torch.diag(gram.diagonal())).abs().max()) < 1e-4 * float(powers.max())
    assert powers.tolist() == sorted(powers.tolist(), reverse=True)
    before, after = (physics.forward_intensity(patches, probes) for probes in (modes, mixed))
    torch.testing.assert_close(before, after, rtol=1e-4, atol=1e-3 * float(before.max()))


def test_orthogonal_modes_stay_as_they_are() -> None:
    modes = probe(3)
    mixed = torch.tensordot(probe_gauge.orthogonal_modes(modes), modes, dims=1)
    overlap = mixed.flatten(1).conj() @ modes.flatten(1).T
    assert float((overlap - torch.diag(overlap.diagonal())).abs().max()) < 0.2 * float(overlap.abs().max())


def test_further_modes_are_weak_and_orthogonal_and_the_power_stays() -> None:
    given = probe()
    for count in (1, 2, 6):
        modes = probe_gauge.with_modes(given, count)
        assert modes.shape == (count, 32, 32)
        torch.testing.assert_close(modes.norm(), given.norm())
        gram = (modes.flatten(1) @ modes.flatten(1).mH).abs()
        assert float((gram - torch.diag(gram.diagonal())).max()) < 1e-3 * float(gram.max())
        powers = probe_gauge.mode_powers(modes)
        assert float(powers.sum()) == 1
        assert all(float(power) < 0.04 for power in powers[1:])
    assert probe_gauge.with_modes(probe(3), 2).shape == (3, 32, 32)
