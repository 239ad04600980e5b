"""The checks before a run: what is whole passes, also in odd but legal forms, and images are looked into."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from srq_nni.errors import DataError, OptionError, SRQError
from srq_nni.models.preflight import check_options
from srq_nni.models.preflight_data import check_image_folder
from tests.sr_data import Missing, changed, evaluation_options, float_checkpoint, train_options


@pytest.fixture
def options(photo_folders: Path, tmp_path: Path) -> dict[str, Any]:
    return train_options(photo_folders, float_checkpoint(tmp_path / "float.pth"))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("val", Missing),
        ("datasets:val", Missing),
        ("num_gpu", "auto"),
        ("manual_seed", Missing),
        ("path:pretrain_network_g", Missing),
        ("train:optim_q", {"lr": 0.5}),
        ("train:ema_decay", 0),
        ("train:scheduler", {"type": "CosineAnnealingRestartLR", "periods": [5, 5], "restart_weights": [1, 1]}),
        ("train:scheduler:type", "MultiStepRestartLR"),
        ("val:metrics", Missing),
        ("val:metrics", None),
        ("quantization:bits", {"weight": 2, "activation": 8}),
        ("network_g:upscale", 2),
        ("datasets:train:gt_size", 96),
    ],
)
def test_legal_options_pass(options: dict[str, Any], key: str, value: Any) -> None:
    check_options(changed(options, key, value), is_train=True)


def test_legal_test_options_pass(photo_folders: Path, tmp_path: Path) -> None:
    options = evaluation_options(photo_folders, float_checkpoint(tmp_path / "float.pth"))
    check_options(options, is_train=False)
    low = {"name": "low", "type": "SingleImageDataset", "io_backend": {"type": "disk"}}
    low["dataroot_lq"] = str(photo_folders / "LR_bicubic" / "X2")
    check_options(changed(options, "datasets:test_2", low), is_train=False)


def test_float_training_passes_too(options: dict[str, Any]) -> None:
    options["model_type"] = "SRModel"
    del options["quantization"]
    options["train"]["optim_q"] = {"lr": 1e-2}
    assert check_options(options, is_train=True) == [
        f"{key}: model_type 'SRModel' does not read it, a QuantSRModel does"
        for key in ("train: skt_opt", "train: optim_q", "path: pretrain_network_t")
    ]


def test_settings_of_a_teacher_that_no_loss_uses_get_a_line(options: dict[str, Any]) -> None:
    options["train"]["distill_flips"] = False
    options["quantization"] = {**options["quantization"], "feature": "upsample"}
    unused = "nothing reads it without train:"
    assert check_options(options, is_train=True) == [
        f"train: distill_flips: {unused} distill_opt; add that, or delete the key"
    ]
    assert check_options(changed(options, "train:skt_opt", None), is_train=True) == [
        f"path: pretrain_network_t: {unused} skt_opt or distill_opt; add that, or delete the key",
        f"train: distill_flips: {unused} distill_opt; add that, or delete the key",
        f"quantization: feature: {unused} skt_opt; add that, or delete the key",
    ]


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("train:scheduler:gamma", "0,5", "train: scheduler: gamma: '0,5' is not allowed; give a number"),
        ("train:scheduler:milestones", "abc", "train: scheduler: milestones: 'abc' is not allowed; give a list"),
        ("train:scheduler:milestones", [4, "x"], "train: scheduler: milestones[1]: 'x' is not allowed; give a number"),
        ("network_g:res_scale", None, "network_g: res_scale: nothing is not allowed; give a number, such as the"),
        ("network_g:img_range", "255,", "network_g: img_range: '255,' is not allowed; give a number, such as the"),
        ("quantization", 4, "quantization: 4 is not a block"),
        ("quantization:feature", "", "quantization: feature: '' is not allowed; give a text"),
    ],
)
def test_wrong_kinds_that_would_end_a_run_later(options: dict[str, Any], key: str, value: Any, message: str) -> None:
    with pytest.raises(OptionError) as caught:
        check_options(changed(options, key, value), is_train=True)
    assert str(caught.value).startswith(message)


def test_a_home_directory_is_understood(
    options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    check_options(changed(options, "path:pretrain_network_g", "~/float.pth"), is_train=True)


def test_the_check_changes_neither_options_nor_random_numbers_that_count(options: dict[str, Any]) -> None:
    before = changed(options, "name", options["name"])
    check_options(options, is_train=True)
    assert options == before


def test_several_gpus_need_a_launcher(options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for given in (2, "auto"):
        with pytest.raises(OptionError, match="num_gpu: 2 without a launcher means DataParallel"):
            check_options(changed(options, "num_gpu", given), is_train=True)
        check_options(changed(options, "num_gpu", given), is_train=True, launcher="pytorch")


def test_a_launcher_needs_gpus(options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr("srq_nni.models.cpu_distributed._enabled", False)
    with pytest.raises(OptionError) as caught:
        check_options(options, is_train=True, launcher="pytorch")
    assert str(caught.value) == (
        "--launcher pytorch: BasicSR trains one process per GPU and this machine has none; leave --launcher out"
    )


# --- images


@pytest.fixture
def folder(photo_folders: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(photo_folders / "HR", tmp_path / "HR"))


def test_sizes_of_whole_images(folder: Path) -> None:
    (folder / ".hidden").write_text("ignored, as BasicSR does")
    (folder / "below").mkdir()
    found = check_image_folder(folder, "here")
    assert [file.name for file in found] == ["astronaut.png", "chelsea.png", "coffee.png", "rocket.png"]
    assert set(found.values()) == {(96, 96)}


@pytest.mark.parametrize("suffix", ["jpg", "bmp", "tif", "webp"])
def test_other_formats_pass_whole_and_fail_cut(folder: Path, suffix: str) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (40, 40, 3), dtype=np.uint8)
    file = folder / f"a.{suffix}"
    Image.fromarray(pixels).save(file)
    assert check_image_folder(folder, "here")[file] == (40, 40)
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(DataError, match=rf"here: '.*a\.{suffix}' is not a whole image \("):
        check_image_folder(folder, "here")


@pytest.mark.parametrize("share", [0.0, 0.02, 0.5, 0.95])
def test_a_truncated_png_is_named(folder: Path, share: float) -> None:
    file = folder / "coffee.png"
    file.write_bytes(file.read_bytes()[: int(file.stat().st_size * share)])
    with pytest.raises(DataError) as caught:
        check_image_folder(folder, "datasets: train: dataroot_gt")
    assert str(caught.value).startswith(f"datasets: train: dataroot_gt: '{file}' is not a whole image (")
    assert str(caught.value).endswith("); replace or remove it")


def test_a_flipped_byte_in_a_png_is_found(folder: Path) -> None:
    file = folder / "rocket.png"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 0xFF
    file.write_bytes(content)
    with pytest.raises(DataError, match=r"rocket\.png' is not a whole image"):
        check_image_folder(folder, "here")


def test_a_format_that_opencv_cannot_read_is_refused(folder: Path) -> None:
    Image.new("RGB", (8, 8)).save(folder / "a.ico")
    with pytest.raises(DataError, match=r"a\.ico' has a format that BasicSR cannot read; give \.png, \.jpg"):
        check_image_folder(folder, "here")


def test_empty_and_missing_folders(tmp_path: Path) -> None:
    (tmp_path / "HR").mkdir()
    with pytest.raises(DataError) as caught:
        check_image_folder(tmp_path / "HR", "here")
    assert str(caught.value) == (
        f"here: '{tmp_path / 'HR'}' is empty; put images (.png, .jpg, .jpeg, .bmp, .tif, .tiff, .webp) there"
    )
    with pytest.raises(DataError) as caught:
        check_image_folder(tmp_path / "HRR", "here")
    assert str(caught.value) == (
        f"here: '{tmp_path / 'HRR'}' is not a folder; give a folder of images; did you mean 'HR'?"
    )


@pytest.mark.parametrize("seed", range(8))
def test_fuzzed_options_end_in_one_sentence(options: dict[str, Any], seed: int) -> None:
    """Replace one value somewhere by something of another kind: the check passes it or names it, in one line."""
    generator = np.random.default_rng(seed)
    strange = [None, 3, -1, 0.5, "word", "", [], [1, "a"], {}, {"a": {}}, True, float("nan")]
    paths = list(leaves(options))
    for _ in range(12):
        key = paths[generator.integers(len(paths))]
        value = strange[generator.integers(len(strange))]
        try:
            check_options(changed(options, key, value), is_train=True)
        except SRQError as error:
            assert "\n" not in str(error), (key, value)


def leaves(block: dict[str, Any], prefix: str = "") -> Any:
    """Yield the path of every key, at every depth."""
    for key, value in block.items():
        yield f"{prefix}{key}"
        if isinstance(value, dict):
            yield from leaves(value, f"{prefix}{key}:")
