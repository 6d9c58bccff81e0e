"""Messages in the words of Ptychodus's window; that it has these labels is seen in the window itself."""

from __future__ import annotations

import pytest

from ptycho_torch.ptychodus.labels import LABELS, in_words_of_the_window
from ptycho_torch.ptychodus.translation import KEYWORDS

NEVER_SENT = {
    "mode",
    "decoder_last_amp_channels",
    "C_model",
    "C_forward",
    "probe_mask",
    "framework",
    "orchestrator",
}
"""Keywords that nothing in the window sets by itself."""


def test_every_keyword_that_the_window_sets_has_a_label() -> None:
    assert {name for rows in KEYWORDS.values() for name in rows} == {*LABELS, *NEVER_SENT}


@pytest.mark.parametrize(
    ("ours", "shown"),
    [
        ("N: 128 became 32, the side of the patterns", "Model Size: 128 became 32, the side of the patterns"),
        ("accelerator: cuda became cpu", "Device: cuda became cpu"),
        (
            "K = 9 has no effect: neighbor_function is 4_quadrant",
            "Nearest Neighbors for Lookup = 9 has no effect: Neighbor Function is 4_quadrant",
        ),
        (
            "grid_size = (4, 1) has no effect: C = 5 says",
            "Grid Size Y and Grid Size X = (4, 1) has no effect: Channels = 5 says",
        ),
        ("use a smaller gridsize", "use fewer Channels"),
        ("train with gridsize = 2", "train with Channels = 4"),
        (
            "try gradient_clip_val=1, scheduler=WarmupCosine, a smaller learning_rate, or another seed",
            "try Gradient Clip Value = 1, Learning Rate Scheduler = Cosine, a smaller Learning Rate, "
            "or another seed (PTYCHO_EXEC_SEED in the environment of Ptychodus)",
        ),
        (
            "choose precision=bf16-mixed",
            "choose PTYCHO_EXEC_PRECISION=bf16-mixed in the environment of Ptychodus",
        ),
        ("`ptycho-torch convert /a/N=4/b NEW --to x`", "`ptycho-torch convert /a/N=4/b NEW --to x`"),
        ("the patterns are 16 x 16", "the patterns are 16 x 16"),
    ],
)
def test_names_become_labels_and_what_has_none_a_variable(ours: str, shown: str) -> None:
    assert in_words_of_the_window(ours) == shown
