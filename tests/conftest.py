"""Settings of every test: fixed seeds, one thread a worker, and small crops of a real photograph."""

from __future__ import annotations

import logging
import os
import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import settings

import srq_nni  # noqa: F401 - BasicSR can be imported only after it, and its registries are filled

settings.register_profile("fixed", derandomize=True, deadline=None, database=None, max_examples=60)
settings.load_profile("fixed")

os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # else gloo looks up the host name, which need not resolve

# Workers of pytest-xdist would otherwise fight for the cores.
torch.set_num_threads(1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let tests that fork run first: a lock that an engine's thread holds just then would stay locked in the child."""
    items.sort(key=lambda item: item.get_closest_marker("processes") is None)


@pytest.fixture(autouse=True)
def fixed_seeds() -> None:
    """Make every test start from the same random state, whatever ran before it."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def photographs() -> torch.Tensor:
    """Four crops of one photograph (face, hair, suit, background), shape (4, 3, 24, 24), values 0 to 255."""
    from skimage import data

    image = torch.from_numpy(np.ascontiguousarray(data.astronaut().transpose(2, 0, 1))).float()
    corners = [(100, 200), (60, 240), (300, 200), (10, 10)]
    return torch.stack([image[:, y : y + 24, x : x + 24] for y, x in corners])


@pytest.fixture(scope="session")
def photo_folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with HR (four photographs, 96x96) and LR_bicubic/X2 (48x48), as BasicSR reads them."""
    from tests.sr_data import write_photo_folders

    return write_photo_folders(tmp_path_factory.mktemp("photographs"))


@pytest.fixture
def work_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty working directory; afterwards BasicSR's log files are closed and its pipelines as they were."""
    import basicsr.train
    import basicsr.utils.logger
    import basicsr.utils.options

    folder = tmp_path / "work"
    folder.mkdir()
    monkeypatch.chdir(folder)
    for name in ("load_resume_state", "EnlargedSampler", "build_dataloader", "build_model"):
        monkeypatch.setattr(basicsr.train, name, getattr(basicsr.train, name))
    monkeypatch.setattr(basicsr.utils.options, "ordered_yaml", basicsr.utils.options.ordered_yaml)
    monkeypatch.setattr("sys.argv", ["srq"])
    yield folder
    logger = logging.getLogger("basicsr")
    for handler in list(logger.handlers):
        logger.removeHandler(handler)
        handler.close()
    basicsr.utils.logger.initialized_logger.clear()
