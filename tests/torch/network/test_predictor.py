"""The network without what training adds: the same weights under the same names, the same patches."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from ptycho_exec.errors import DataError
from ptycho_torch.config import DataConfig, ScienceConfig
from ptycho_torch.data.scan import ScanData
from ptycho_torch.model import PtychoPINN_Lightning
from ptycho_torch.network.checkpoint import save_model
from ptycho_torch.network.predictor import Predictor, load_module
from tests.torch.workflows.tiny_runs import tiny_scan, untrained


@pytest.fixture(scope="module")
def scan() -> ScanData:
    return tiny_scan()


def test_a_model_file_gives_the_module_with_the_weights_of_the_trained_one(
    scan: ScanData, tmp_path: Path
) -> None:
    trained = untrained(PtychoPINN_Lightning, scan)
    file = save_model(tmp_path / "model.ckpt", trained, ScienceConfig(data=DataConfig(N=32)), {})
    module, science = load_module(Predictor, file)
    assert type(module) is Predictor
    assert not module.training
    assert science.data.N == 32
    assert module.arguments() == dict(trained.hparams)
    mine, theirs = module.state_dict(), trained.state_dict()
    assert list(mine) == list(theirs)
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)
    amplitude = torch.from_numpy(scan.amplitude(range(4)))[:, None]
    positions = torch.from_numpy(scan.positions_px[:4])[:, None]
    batch = {"amplitude": amplitude, "positions_px": positions}
    made, wanted = module.predict_step(batch), trained.eval().predict_step(batch)
    assert all(torch.equal(made[name], wanted[name]) for name in wanted)


def test_a_module_is_built_again_from_its_arguments_and_weights(scan: ScanData) -> None:
    trained = untrained(PtychoPINN_Lightning, scan)
    module = Predictor(**trained.arguments())
    module.load_state_dict(trained.state_dict())
    assert torch.equal(module.probe, trained.probe)
    assert module.arguments() == trained.arguments()


def test_a_network_without_probe_or_scale_predicts_nothing(scan: ScanData) -> None:
    batch = {
        "amplitude": torch.from_numpy(scan.amplitude(range(1)))[:, None],
        "positions_px": torch.from_numpy(scan.positions_px[:1])[:, None],
    }
    with pytest.raises(DataError, match="no probe"):
        Predictor(data_config=DataConfig(N=32)).predict_step(batch)
    with pytest.raises(DataError, match="photon scale of these patterns is not known"):
        Predictor(data_config=DataConfig(N=32), probe=scan.probe).predict_step(batch)


def test_weights_of_another_network_are_refused(scan: ScanData) -> None:
    weights = untrained(PtychoPINN_Lightning, scan).state_dict()
    with pytest.raises(DataError, match="do not fit"):
        Predictor(data_config=DataConfig(N=32), model_config={"n_filters": 8}).load_state_dict(weights)
