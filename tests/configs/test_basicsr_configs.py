"""Every YAML that users copy is valid as it stands, but for the data and weights that only they have."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from basicsr.utils.registry import MODEL_REGISTRY

from srq_nni.archs.quantized_arch import build_float, insert_quantizers
from srq_nni.compression.options import options_from
from srq_nni.models.options import read_options
from srq_nni.quantization.layers import quantized_convolutions

CONFIGS = sorted((Path(__file__).parents[2] / "basicsr_configs").rglob("*.yml"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_config(path: Path) -> None:
    options = read_options(path)
    assert options["model_type"] in MODEL_REGISTRY
    network = options["network_g"]
    model = insert_quantizers(build_float(network), options_from(options["quantization"])).eval()
    assert len(list(quantized_convolutions(model))) == 2 * network["num_block"]
    with torch.no_grad():
        assert model(torch.rand(1, 3, 8, 8)).shape == (1, 3, 8 * options["scale"], 8 * options["scale"])
    for metric in options.get("val", {}).get("metrics", {}).values():
        assert metric["crop_border"] == options["scale"]
        assert metric["test_y_channel"]
    if "train" in options:
        assert options["path"]["pretrain_network_t"] == options["path"]["pretrain_network_g"]
        assert options["train"]["skt_opt"]["loss_weight"] == pytest.approx(1000 / 255, abs=2e-3)
        assert options["train"]["optim_q"]["lr"] == 1e-2


def test_there_is_a_test_file_for_each_full_length_recipe() -> None:
    names = {path.stem for path in CONFIGS}
    recipes = {name for name in names if name.startswith("train_") and not name.endswith("_demo")}
    assert {name.replace("train_", "test_", 1) for name in recipes} <= names
