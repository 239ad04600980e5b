"""The README's way from a clone to an INT8 model of one's own pictures, with four iterations of training."""

from __future__ import annotations

import dataclasses
import itertools
import os
import re
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from tests.docs import project
from tests.docs.pages import Block, blocks
from tests.sr_data import REPOSITORY

FEW = "train:total_iter=4 logger:save_checkpoint_freq=2 val:val_freq=4 datasets:train:batch_size_per_gpu=2"


@pytest.fixture
def clone(work_folder: Path) -> Path:
    """A clone, which is the current folder, and pictures of somebody; none of BasicSR's folders."""
    project.link(work_folder)
    pictures = work_folder / "my_photos"
    pictures.mkdir()
    for path in sorted((REPOSITORY / "data" / "photos").glob("*.png"))[:2]:
        cv2.imwrite(str(pictures / path.name), cv2.imread(str(path))[:97, :121])  # odd, as pictures are
    return work_folder


def steps() -> tuple[Block, Block]:
    """Return the blocks that make the pairs, and that train, export and enlarge."""
    (pairs,) = (block for block in blocks(REPOSITORY / "README.md") if "imresize" in block.code)
    (commands,) = (block for block in blocks(REPOSITORY / "README.md") if "name=mine" in block.code)
    return pairs, dataclasses.replace(commands, code=commands.code.replace("name=mine", f"name=mine {FEW}"))


def alone(block: Block) -> None:
    """Run Python as a reader does, in a new process: this one has imported everything."""
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    subprocess.run([sys.executable, "-c", block.code], env=environment, check=True)


def test_from_a_clone_to_integers(clone: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pairs, commands = steps()
    alone(pairs)
    for kind, name in itertools.product(("train", "val"), ("HR", "LR")):
        assert len(list((clone / "mine" / kind / name).glob("*.png"))) == 1
    commands.run({})
    printed = capsys.readouterr().out
    assert "10 of 10 quantized convolutions in integers, accumulators exact in int32; coverage 64.6%" in printed
    assert re.search(r"openvino +int8 \+ float32 .* 10 of 14 ", printed), "the engine says what it ran"
    page = (clone / "experiments/mine/report/report.html").read_text()
    assert "no images" not in page and "Not benchmarked" not in page
    for path in (clone / "my_photos").glob("*.png"):
        small, large = (cv2.imread(str(file)) for file in (path, clone / "enlarged" / path.name))
        assert large.shape == (2 * small.shape[0], 2 * small.shape[1], 3)
        again = cv2.resize(large, small.shape[1::-1], interpolation=cv2.INTER_AREA)
        assert np.abs(again.astype(int) - small).mean() < 2, "the picture must be that picture"


def test_pairs_are_what_basicsr_reads(clone: Path) -> None:
    alone(steps()[0])
    for path in clone.glob("mine/*/HR/*.png"):
        high, low = cv2.imread(str(path)), cv2.imread(str(path.parents[1] / "LR" / path.name))
        assert high.shape == (2 * low.shape[0], 2 * low.shape[1], 3) == (96, 120, 3)
