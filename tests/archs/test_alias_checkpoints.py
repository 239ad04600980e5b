"""What ``srq train`` writes of ``PAMS_EDSR`` and its like under BasicSR's SRModel goes wherever checkpoints go."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from basicsr.archs import build_network

import srq_nni
from srq_nni import checkpoint
from srq_nni.cli.main import main
from srq_nni.errors import CheckpointError
from tests.archs.test_aliases_in_basicsr import MODELS, TINY, stock_options
from tests.sr_data import write_yaml


@pytest.mark.parametrize("iterations", [2, 6], ids=["still calibrating", "calibrated"])
@pytest.mark.parametrize("ema_decay", [0, 0.9])
@pytest.mark.parametrize("name", ["PAMS_EDSR", "DDTB_EDSR"])
def test_a_checkpoint_of_srq_train_is_loaded_packed_and_exported(
    photo_folders: Path, tmp_path: Path, work_folder: Path, name: str, ema_decay: float, iterations: int
) -> None:
    """What a stock model averages of a bound is in part its start; the network that ships has the rest alone."""
    options = stock_options(photo_folders, tmp_path, name)
    options["train"] |= {"ema_decay": ema_decay, "total_iter": iterations}
    main(["train", "-opt", write_yaml(tmp_path / "train.yml", options)])
    file = MODELS / "net_g_latest.pth"
    key = "params_ema" if ema_decay else "params"
    state = torch.load(file, weights_only=True)[key]
    assert ("calibrated_batches" in state or "bounds_started" in state) == (iterations == 2 or ema_decay > 0)
    alias = build_network(options["network_g"])
    alias.load_state_dict(state)
    image = torch.rand(1, 3, 20, 24, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = alias.eval()(image)
        assert torch.allclose(srq_nni.load(file)(image), expected, atol=1e-5)
        main(["pack", str(file), "-o", "small.safetensors"])
        assert torch.allclose(srq_nni.load("small.safetensors")(image), expected, atol=1e-5)
    main(["export", str(file), "-o", "small.onnx", "--engine", "tensorrt"])
    assert Path("small.onnx").exists()


def test_bounds_that_saw_no_image_are_refused(tmp_path: Path) -> None:
    net = build_network({"type": "PAMS_EDSR", **TINY})
    torch.save({"params": net.state_dict()}, tmp_path / "n.pth")
    with pytest.raises(CheckpointError) as caught:
        checkpoint.state_dict_of(checkpoint.read(tmp_path / "n.pth"), "n.pth", "params")
    assert str(caught.value) == (
        "checkpoint 'n.pth' was saved before the first training batch, so its bounds are not set; give a later one"
    )
