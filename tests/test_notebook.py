"""A notebook that trains and reconstructs shows what a reader wants to see, run by a real kernel."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

CELLS = {
    "scan": "import ptycho_torch as pt\n"
    "from ptycho_exec import progress\n"
    "progress.DELAY_S = 0  # so short a training would show no bar\n"
    "scan = pt.simulate_scan(n=16, patterns=36, photons=1e6, seed=0)\nscan",
    "scan figure": "scan.plot()",
    "settings": "settings = pt.ScienceConfig(model=pt.ModelConfig(n_filters=4, depth=1), "
    "training=pt.TrainingConfig(epochs=2))\n"
    "from ptycho_exec import ExecutionSettings\n"
    "how = ExecutionSettings.from_values({'num_threads': 1, 'enable_checkpointing': False})\nhow",
    "training": "trained = pt.train(scan, config=settings, execution_config=how)\ntrained",
    "losses": "trained.plot()",
    "result": "result = pt.reconstruct(trained, scan)\nresult",
    "verdict": "result.verdict",
    "object": "result.plot()",
    "names": "ip = get_ipython()\nip.Completer.use_jedi = False\n"
    "[ip.complete(text)[1] for text in ('pt.simul', 'result.pl', 'trained.hist', \"result['phase\")]",
}


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Any]]:
    """What each cell shows."""
    nbformat = pytest.importorskip("nbformat", reason="nbclient is not installed")
    nbclient = pytest.importorskip("nbclient", reason="nbclient is not installed")
    pytest.importorskip("ipykernel", reason="it is part of the extra notebook")
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(text) for text in CELLS.values()])
    folder = str(tmp_path_factory.mktemp("notebook"))
    nbclient.NotebookClient(
        book, timeout=120, kernel_name="python3", resources={"metadata": {"path": folder}}
    ).execute()
    assert list(Path(folder).iterdir()) == [], "nothing is written that nobody asked for"
    return {name: cell.outputs for name, cell in zip(CELLS, book.cells, strict=True)}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of the packages that run a kernel
def test_a_notebook_shows_what_a_reader_wants_to_see(outputs: dict[str, list[Any]]) -> None:
    def html(name: str) -> str:
        return str(outputs[name][-1].data["text/html"])

    assert all(output.output_type != "stream" for shown in outputs.values() for output in shown), outputs
    assert "36 of 16 x 16" in html("scan")
    assert "num_threads" in html("settings")
    assert "Cell In[3]:3" in html("settings")
    assert "last train_loss" in html("training")
    assert "verdict" in html("result")
    assert "unexplained part" in html("verdict") or "because" in html("verdict")
    for name in ("scan figure", "losses", "object"):
        assert outputs[name][-1].data["image/png"].startswith("iVBOR")
    bar, result = outputs["training"]
    assert bar.output_type == "display_data", "one line for the whole training, which is replaced"
    assert re.match(r"epoch 2/2  \d+/\d+  train_loss [\d.]+  [\d.]+ s", bar.data["text/plain"])
    assert len(result.data["text/plain"]) < 200
    names = outputs["names"][-1].data["text/plain"]
    for name in (".simulate_scan", ".plot", ".history", "phase"):
        assert name in names
