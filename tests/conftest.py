"""For all tests: an environment in which nothing of this machine, user, launcher or job shows.

Before anything else is imported, variables that our programs, Lightning, launchers and trackers read are
removed, and home becomes an empty folder. A test that sets one gets it removed again afterwards.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

pytest_plugins = ("tests.mutation", "tests.cluster.slurm")

_PREFIXES = (
    "GITHUB_",
    "JPY_",
    "KUBERNETES_",
    "LT_",
    "MLFLOW_",
    "OMPI_",
    "PL_",
    "PMI",
    "PTYCHO",
    "PYDANTIC_",
    "SLURM_",
    "TORCHELASTIC_",
    "WANDB_",
    "XDG_",
)
_NAMES = (
    "COLUMNS",
    "CUDA_VISIBLE_DEVICES",
    "FORCE_COLOR",
    "GROUP_RANK",
    "LOCAL_RANK",
    "LOCAL_WORLD_SIZE",
    "MASTER_ADDR",
    "MASTER_PORT",
    "NODE_RANK",
    "NO_COLOR",
    "OMP_WAIT_POLICY",
    "RANK",
    "WORLD_SIZE",
)


def _foreign(name: str) -> bool:
    return name.upper().startswith(_PREFIXES) or name.upper() in _NAMES


# Fixtures of modules and sessions run before those of tests, so the process itself is cleaned at once.
for _name in filter(_foreign, list(os.environ)):
    del os.environ[_name]
_HOME = tempfile.TemporaryDirectory(prefix="home_of_tests_")
# Networks of tests are tiny, so threads gain nothing; on a busy machine they wait for each other.
os.environ |= {"OMP_NUM_THREADS": "1", "HOME": _HOME.name, "MPLCONFIGDIR": str(Path(_HOME.name) / "mpl")}
# Processes that tests start import the packages under test, and Lightning in half the time.
_HERE = Path(__file__).parent
os.environ["PYTHONPATH"] = os.pathsep.join(map(str, (_HERE / "children", _HERE.parent)))


# In CI the same examples every time, and of a failure the line that repeats it.
settings.register_profile("ci", derandomize=True, print_blob=True, database=None, deadline=None)
if os.environ.get("CI"):
    settings.load_profile("ci")


@pytest.fixture(autouse=True)
def _clean_process() -> Iterator[None]:
    """Give back every variable and the working directory as they were before the test."""
    variables, folder = dict(os.environ), Path.cwd()
    yield
    os.chdir(folder)
    for name in os.environ.keys() - variables.keys():
        del os.environ[name]
    os.environ.update(variables)
