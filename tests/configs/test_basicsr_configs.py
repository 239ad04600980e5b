"""Every YAML that users copy is valid as it stands, and says what the papers and BasicSR's users expect."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from basicsr.utils.registry import MODEL_REGISTRY

from srq_nni.archs.quantized_arch import build_float, insert_quantizers
from srq_nni.compression.bounds import bounds_rate
from srq_nni.compression.options import options_from
from srq_nni.compression.presets import PRESETS
from srq_nni.models.options import read_options
from srq_nni.quantization.layers import quantized_convolutions
from tests.sr_data import REPOSITORY

sys.path[:0] = [str(REPOSITORY / "benchmarks/accuracy"), str(REPOSITORY / "benchmarks")]

import cells  # noqa: E402
import pipeline  # noqa: E402
import recipes  # noqa: E402

FOLDER = REPOSITORY / "basicsr_configs"
CONFIGS = sorted(FOLDER.rglob("*.yml"))
RECOMMENDED = {  # file -> recipe of the accuracy table, and its iterations beside those that equalize
    FOLDER / "train" / "train_DDTB_EDSR_x2_recommended.yml": (recipes.BEST[4], 3000),
    FOLDER / "train" / "train_DDTB_EDSR_x2_int8.yml": (recipes.WHOLE_EQUALIZED, 2850),
}
OURS = ("_demo", "_recommended", "_int8")
TRAINING = [p for p in CONFIGS if p.stem.startswith("train_") and not p.stem.endswith(OURS)]
TESTS = [path for path in CONFIGS if path.stem.startswith("test_")]
NETWORKS = {"EDSR_M": (2, 3, 4), "RDN_B": (2, 3, 4), "SRResNet_": (2, 4)}
RECIPES = {f"{method}_{arch}x{s}" for method in ("PAMS", "DDTB") for arch, scales in NETWORKS.items() for s in scales}
QUANTIZED = {"EDSR": 32, "RDN": 146, "SRResNet": 32}
# High-resolution crops of the papers (methods.md, 3); as many low-resolution pixels as at x4 where they have no x3.
CROPS = {
    ("PAMS", "EDSR"): {2: 96, 3: 144, 4: 192},
    ("DDTB", "EDSR"): {2: 96, 3: 144, 4: 192},
    ("PAMS", "RDN"): {2: 48, 3: 72, 4: 96},
    ("DDTB", "RDN"): {2: 64, 3: 72, 4: 96},
    ("PAMS", "SRResNet"): {2: 96, 4: 192},
    ("DDTB", "SRResNet"): {2: 96, 4: 192},
}
TRAINING_ORDER = [
    "name",
    "model_type",
    "scale",
    "num_gpu",
    "manual_seed",
    "quantization",
    "datasets",
    "network_g",
    "path",
    "train",
    "val",
    "logger",
    "dist_params",
]


def stem(path: Path) -> str:
    return path.stem


def test_there_is_a_file_for_each_method_network_and_scale() -> None:
    assert {path.stem.removeprefix("train_") for path in TRAINING} == RECIPES
    assert {path.stem.removeprefix("test_") for path in TESTS} == RECIPES | {
        path.stem.removeprefix("train_") for path in RECOMMENDED
    }


@pytest.mark.parametrize("path", CONFIGS, ids=stem)
def test_the_network_builds_with_its_quantizers(path: Path) -> None:
    options = read_options(path)
    assert options["model_type"] in MODEL_REGISTRY
    network = options["network_g"]
    with torch.device("meta"):  # RDN has 22 million parameters
        model = insert_quantizers(build_float(network), options_from(options["quantization"]))
    count = 2 * network["num_block"] if "num_layer" not in network else QUANTIZED["RDN"]
    assert len(list(quantized_convolutions(model))) == count
    assert network["type"] in PRESETS
    assert network["upscale"] == options["scale"]
    for metric in options.get("val", {}).get("metrics", {}).values():
        assert metric["crop_border"] == options["scale"]
        assert metric["test_y_channel"] is True


@pytest.mark.parametrize("path", TRAINING, ids=stem)
def test_the_recipe_is_the_published_one(path: Path) -> None:
    options = read_options(path)
    method = path.stem.split("_")[1]
    block, train, data = options["quantization"], options["train"], options["datasets"]["train"]
    assert options["name"] == path.stem.removeprefix("train_")
    assert list(options) == TRAINING_ORDER
    assert block["quantizer"] == method.lower()
    assert block["calibration_iters"] == 1000
    arch = options["network_g"]["type"]
    if method == "DDTB":
        assert block["static_iters"] == 4000
        assert block["dynamic_ratio"] == PRESETS[arch].dynamic_ratio
    assert data["gt_size"] == CROPS[method, arch][options["scale"]]
    assert data["batch_size_per_gpu"] == 16
    assert train["optim_g"] == {"type": "Adam", "lr": 1e-4, "weight_decay": 0, "betas": [0.9, 0.999]}
    assert "optim_q" not in train, "the profile chooses it"
    assert train["scheduler"]["milestones"] == [10000 * step for step in range(1, 6)]
    assert train["scheduler"]["gamma"] == 0.5
    assert train["total_iter"] == 60000
    assert train["skt_opt"]["loss_weight"] == pytest.approx(1000 / 255, abs=2e-3)
    assert options["path"]["pretrain_network_t"] == options["path"]["pretrain_network_g"]
    assert options["path"]["strict_load_g"] is True


@pytest.mark.parametrize("path", RECOMMENDED, ids=stem)
def test_the_recommended_file_is_the_recipe_that_was_measured(path: Path) -> None:
    """The YAML that users copy trains as the cell of the accuracy table does."""
    options, (recipe, iterations) = read_options(path), RECOMMENDED[path]
    cell = cells.Cell("ddtb", options["quantization"]["bits"], recipe=recipe, iterations=iterations)
    measured = pipeline.options(cell, cells.NETWORKS["EDSR-32x5"], Path("weights.pth"), Path("folder"))
    defaults = {"calibration": "mse", "weight_range": "learned"}
    assert defaults | options["quantization"] == measured["quantization"]
    train, expected = options["train"], measured["train"]
    assert train.pop("equalize_iter", 0) == recipes.RECIPES[recipe].equalized
    assert train["skt_opt"].pop("loss_weight") == pytest.approx(expected["skt_opt"].pop("loss_weight"), abs=2e-3)
    assert bounds_rate() == (expected.pop("optim_q")["relative_lr"], True), "the default"
    assert train == {**expected, "ema_decay": 0}
    protocol = cells.PROTOCOL
    data = options["datasets"]["train"]
    assert (data["batch_size_per_gpu"], data["gt_size"]) == (protocol.batch, protocol.patch * options["scale"])
    assert (data["use_hflip"], data["use_rot"]) == (True, True)
    assert list(options) == TRAINING_ORDER


@pytest.mark.parametrize("path", TESTS, ids=stem)
def test_the_test_file_belongs_to_its_training(path: Path) -> None:
    tested = read_options(path)
    trained = read_options(FOLDER / "train" / path.name.replace("test_", "train_", 1))
    assert tested["network_g"] == trained["network_g"]
    assert tested["scale"] == trained["scale"]
    assert tested["quantization"].items() <= trained["quantization"].items()
    assert tested["path"]["pretrain_network_g"] == f"experiments/{trained['name']}/models/net_g_latest.pth"
    scale = tested["scale"]
    for number, name in enumerate(("Set5", "Set14", "B100", "Urban100"), 1):
        data = tested["datasets"][f"test_{number}"]
        assert data["name"] == name
        assert data["dataroot_gt"] == f"datasets/benchmark/{name}/HR"
        assert data["dataroot_lq"] == f"datasets/benchmark/{name}/LR_bicubic/X{scale}"
        assert data["filename_tmpl"] == f"{{}}x{scale}"
    assert len(tested["datasets"]) == 4


@pytest.mark.parametrize("path", CONFIGS, ids=stem)
def test_bits_stand_in_one_place(path: Path) -> None:
    text = re.sub(r"#.*", "", path.read_text())
    assert len(re.findall(r"\bbits\b|\d-?bit", text)) == 1
    assert all(len(line) <= 120 for line in path.read_text().splitlines())


@pytest.mark.parametrize("path", [*TRAINING, *RECOMMENDED, *TESTS], ids=stem)
def test_a_plain_yaml_reader_agrees(path: Path) -> None:
    """BasicSR's own loader is PyYAML: no number may come out as a text."""

    def texts(value: Any) -> list[str]:
        if isinstance(value, dict):
            return [text for item in value.values() for text in texts(item)]
        if isinstance(value, list):
            return [text for item in value for text in texts(item)]
        return [value] if isinstance(value, str) else []

    options = yaml.safe_load(path.read_text())
    assert options == read_options(path)
    assert not [text for text in texts(options) if re.fullmatch(r"[-+.\de]+", text)]
