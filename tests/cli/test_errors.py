"""Wrong input to the commands: status 2, one line that names the key or the file, and nothing written."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.sr_data import (
    Missing,
    changed,
    evaluation_options,
    float_checkpoint,
    train_options,
    write_yaml,
)


@pytest.fixture
def options(photo_folders: Path, tmp_path: Path) -> dict[str, Any]:
    return train_options(photo_folders, float_checkpoint(tmp_path / "EDSR_float.pth"))


TRAINING: list[tuple[str, Any, str]] = [
    *((key, Missing, f"key '{key}' is missing") for key in ("name", "model_type", "num_gpu", "datasets", "network_g")),
    *((key, Missing, f"key '{key}' is missing") for key in ("path", "train", "logger")),
    ("name", [1], "name: [1] is not allowed; give a text"),
    *(
        ("name", wrong, f"name: {wrong!r} cannot name a folder; give a plain word")
        for wrong in ("..", ".", "a\nb", "\0")
    ),
    ("name", "a/b", "name: 'a/b' cannot name a folder"),
    ("datasets", 3, "datasets: 3 is not a block of keys"),
    ("path", None, "key 'path' is missing"),
    ("val", "often", "val: 'often' is not a block of keys"),
    ("num_gpu", "two", "num_gpu: 'two' is not allowed"),
    ("num_gpu", 64, "num_gpu: 64 but this machine has"),
    ("manual_seed", -1, "manual_seed: -1 is not allowed"),
    ("model_type", "QuantSRModle", "model_type: 'QuantSRModle' is not known; did you mean 'QuantSRModel'?"),
    ("model_type", "SRModel", "quantization: the block is given but model_type is 'SRModel', which ignores it"),
    ("quantization", Missing, "model_type QuantSRModel needs a 'quantization:' block"),
    ("quantization", None, "quantization: None is not a block"),
    ("quantization:quantizer", "pasm", "quantization: quantizer: 'pasm' is not known"),
    ("quantization:bits", 1, "quantization: bits: 1 is not a bit width"),
    ("quantization:bits", 9, "quantization: bits: 9 is not a bit width"),
    ("quantization:bits", "4", "quantization: bits: '4' is not a bit width"),
    ("quantization:wirring", "paper", "quantization: key 'wirring' is not known"),
    ("quantization:calibration", "maxx", "calibration: 'maxx' is not known; give one of max, mae, mse, official"),
    ("quantization:feature", "upsampel", "feature: the network has no module 'upsampel'"),
    (
        "quantization",
        {"quantizer": "pams", "config_list": [{"op_names": ["bdy"], "quant_dtype": "int4"}]},
        "op_names: 'bdy' selects no module",
    ),
    ("quantization:config_list", [{"op_names": ["body"]}], "bits: it has no effect beside config_list"),
    ("scale", Missing, "scale: None and network_g: upscale: 2 differ"),
    ("scale", 4, "scale: 4 and network_g: upscale: 2 differ"),
    ("network_g:type", "EDRS", "network_g: type 'EDRS' is not known; give a registered network; did you mean 'EDSR'?"),
    ("network_g:type", ["EDSR"], "network_g: type: ['EDSR'] is not allowed; give a text"),
    ("network_g:num_feats", 8, "num_feats"),
    ("network_g:num_block", 45045, "num_block: 45045 is no size of a network; give a number up to 10000"),
    ("network_g:num_out_ch", 0, "network_g: it has a layer without channels; give numbers above 0 to EDSR"),
    ("path:resume_state", "~no_such_user/9.state", "path: resume_state: '~no_such_user/9.state' does not exist"),
    ("datasets:val:dataroot_gt", "~no_such_user", "datasets: val: dataroot_gt: '~no_such_user' is not a folder"),
    ("network_g:num_feat", 16, "conv_first.weight has shape (8, 3, 3, 3) and the network (16, 3, 3, 3)"),
    ("network_g:num_block", 2, "it lacks body.1.conv1.weight"),
    ("path:pretrain_network_g", "EDSR_flaot.pth", "checkpoint 'EDSR_flaot.pth' does not exist"),
    ("path:pretrain_network_g", 3, "path: pretrain_network_g: 3 is not allowed"),
    ("path:pretrain_network_t", Missing, "train: skt_opt compares with a teacher, but path: pretrain_network_t"),
    ("path:pretrain_network_t", "no.pth", "checkpoint 'no.pth' does not exist"),
    ("path:pretrian_network_g", "x.pth", "path: key 'pretrian_network_g' is not known and would become a folder"),
    ("path:param_key_g", "weights", "has no 'weights'; allowed are params"),
    ("path:resume_state", "9.state", "path: resume_state: '9.state' does not exist"),
    ("train:total_iter", Missing, "train: key 'total_iter' is missing"),
    ("train:total_iter", "many", "train: total_iter: 'many' is not allowed"),
    ("train:ema_decay", 2, "train: ema_decay: 2 is not allowed; give a number from 0 to below 1"),
    ("train:optim_g", Missing, "train: key 'optim_g' is missing"),
    ("train:optim_g:type", "AdamW", "train: optim_g: type: 'AdamW' is not allowed; give Adam"),
    ("train:optim_g:lr", "fast", "train: optim_g: lr: 'fast' is not allowed; give a number from 0"),
    ("train:optim_g:momentum", 0.9, "unexpected keyword argument 'momentum'"),
    ("train:optim_q", {"rate": 1}, "train: optim_q: key 'rate' is not known; allowed are relative_lr, lr"),
    ("train:optim_q", {}, "train: optim_q: {} is not allowed; give either relative_lr (in widths of a"),
    (
        "train:scheduler:type",
        "StepLR",
        "give one of MultiStepLR, MultiStepRestartLR, CosineAnnealingRestartLR; did you mean 'MultiStepLR'?",
    ),
    ("train:scheduler:gama", 1, "unexpected keyword argument 'gama'"),
    ("train:pixel_opt", Missing, "train: neither pixel_opt nor perceptual_opt is given"),
    ("train:pixel_opt:type", "L1los", "train: pixel_opt: type: 'L1los' is not known; did you mean 'L1Loss'?"),
    ("train:pixel_opt:reduction", "median", "train: pixel_opt: loss_weight=1.0, reduction='median' does not fit"),
    ("train:skt_opt:weight", 1, "unexpected keyword argument 'weight'"),
    ("val:val_freq", Missing, "val: key 'val_freq' is missing"),
    ("val:metrics:psnr:type", "calculate_pnsr", "'calculate_pnsr' is not known; did you mean 'calculate_psnr'?"),
    ("val:metrics:psnr:crop_border", Missing, "val: metrics: psnr: key 'crop_border' is missing"),
    ("logger:print_freq", 0, "logger: print_freq: 0 is not allowed"),
    ("logger:use_tb_logger", Missing, "logger: key 'use_tb_logger' is missing"),
    ("datasets:train", Missing, "datasets: key 'train' is missing"),
    ("datasets:test", {}, "give train or val, or val_2 and so on; is this a file for srq test?"),
    ("datasets:val", None, "datasets: val: None is not a block of keys"),
    ("datasets:train:type", "PairedImagesDataset", "'PairedImagesDataset' is not known; did you mean"),
    (
        "datasets:train:io_backend:type",
        "disc",
        "io_backend: type: 'disc' is not allowed; give one of disk, lmdb, memcached; did you mean 'disk'?",
    ),
    ("datasets:train:gt_size", Missing, "datasets: train: key 'gt_size' is missing"),
    ("datasets:train:gt_size", 33, "gt_size: 33 is no multiple of scale 2"),
    ("datasets:train:gt_size", 128, "is 96x96, smaller than gt_size 128"),
    ("datasets:train:batch_size_per_gpu", 64, "batch_size_per_gpu 64 is more than the 8 images of an epoch"),
    ("datasets:train:filename_tmpl", "{}x4", "has no partner 'astronautx4.png'"),
    ("datasets:train:filename_tmpl", "{}{}", "filename_tmpl"),
    ("datasets:val:dataroot_gt", 3, "datasets: val: dataroot_gt: 3 is not allowed"),
    ("datasets:val:dataroot_lq", "LR", "datasets: val: dataroot_lq: 'LR' is not a folder"),
]


@pytest.mark.parametrize(("key", "value", "expected"), TRAINING)
def test_a_wrong_option_is_one_line(
    options: dict[str, Any], refused: Callable[..., str], tmp_path: Path, key: str, value: Any, expected: str
) -> None:
    line = refused("train", "-opt", write_yaml(tmp_path / "o.yml", changed(options, key, value)))
    assert expected in line


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("val", Missing, "key 'val' is missing"),
        ("val:save_img", Missing, "val: key 'save_img' is missing"),
        ("val:save_img", True, "val: key 'suffix' is missing"),
        ("path:pretrain_network_g", Missing, "path: pretrain_network_g is missing; give the checkpoint to test"),
        ("datasets:train", {}, "give test or val, or val_2 and so on; is this a file for srq train?"),
        ("quantization", Missing, "model_type QuantSRModel needs a 'quantization:' block"),
    ],
)
def test_a_wrong_option_of_a_test_is_one_line(
    photo_folders: Path, refused: Callable[..., str], tmp_path: Path, key: str, value: Any, expected: str
) -> None:
    options = evaluation_options(photo_folders, float_checkpoint(tmp_path / "float.pth"))
    assert expected in refused("test", "-opt", write_yaml(tmp_path / "o.yml", changed(options, key, value)))


def cut_png(low: Path) -> None:
    file = low / "coffeex2.png"
    file.write_bytes(file.read_bytes()[:500])


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        (lambda low: shutil.rmtree(low), "X2' is not a folder"),
        (lambda low: [file.unlink() for file in low.iterdir()], "X2' is empty; put images"),
        (cut_png, "coffeex2.png' is not a whole image"),
        (lambda low: (low / "rocketx2.png").write_text("not a picture"), "rocketx2.png' is not a whole image"),
        (lambda low: (low / "notes.txt").write_text("notes"), "notes.txt' is not a whole image"),
        (lambda low: (low / "rocketx2.png").unlink(), "has no partner 'rocketx2.png'"),
        (lambda low: shutil.copy(low / "rocketx2.png", low / "more.png"), "has 4 images and dataroot_lq 5"),
        (lambda low: shutil.copy(low.parents[1] / "HR" / "rocket.png", low / "rocketx2.png"), "not a factor of 2"),
    ],
)
def test_wrong_images_are_one_line(
    options: dict[str, Any],
    photo_folders: Path,
    refused: Callable[..., str],
    tmp_path: Path,
    damage: Callable[[Path], Any],
    expected: str,
) -> None:
    folder = Path(shutil.copytree(photo_folders, tmp_path / "photos"))
    damage(folder / "LR_bicubic" / "X2")
    for key, below in (("dataroot_gt", "HR"), ("dataroot_lq", "LR_bicubic/X2")):
        options["datasets"]["train"][key] = str(folder / below)
    line = refused("train", "-opt", write_yaml(tmp_path / "o.yml", options))
    assert line.startswith("datasets: train: ") and expected in line


def test_a_missing_checkpoint_names_the_nearest(
    options: dict[str, Any], refused: Callable[..., str], tmp_path: Path
) -> None:
    wrong = changed(options, "path:pretrain_network_g", str(tmp_path / "EDSR_flaot.pth"))
    assert refused("train", "-opt", write_yaml(tmp_path / "o.yml", wrong)).endswith("did you mean 'EDSR_float.pth'?")


@pytest.mark.parametrize("content", [b"", b"text", b"PK\x03\x04 no archive"])
def test_a_broken_checkpoint_is_one_line(
    options: dict[str, Any], refused: Callable[..., str], tmp_path: Path, content: bytes
) -> None:
    (tmp_path / "EDSR_float.pth").write_bytes(content)
    for model in ("QuantSRModel", "SRModel"):
        wrong = changed(options, "model_type", model)
        if model == "SRModel":
            del wrong["quantization"]
        assert "EDSR_float.pth' cannot be read (" in refused("train", "-opt", write_yaml(tmp_path / "o.yml", wrong))


def test_float_training_has_the_same_care(options: dict[str, Any], refused: Callable[..., str], tmp_path: Path) -> None:
    options["model_type"] = "SRModel"
    del options["quantization"]
    wrong = changed(options, "network_g:num_feat", 16)
    assert "does not fit the network" in refused("train", "-opt", write_yaml(tmp_path / "o.yml", wrong))
    torch.save(torch.load(tmp_path / "EDSR_float.pth", weights_only=True)["params"], tmp_path / "EDSR_float.pth")
    line = refused("train", "-opt", write_yaml(tmp_path / "o.yml", options))
    assert line.endswith("EDSR_float.pth' has no 'params'; set param_key_g: ~ for a flat file")
