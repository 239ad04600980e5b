"""The checks before a run of ``base_model`` and of what each base needs."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

from srq_nni.errors import OptionError
from srq_nni.models.preflight import check_options
from tests.models.test_base_models import RRDB, SWINIR, with_gan, with_network
from tests.sr_data import NETWORK, Missing, changed, evaluation_options, float_checkpoint, train_options


@pytest.fixture
def options(photo_folders: Path, tmp_path: Path) -> dict[str, Any]:
    return train_options(photo_folders, float_checkpoint(tmp_path / "float.pth"))


def refused(options: dict[str, Any], *, is_train: bool = True) -> str:
    with pytest.raises(OptionError) as caught:
        check_options(options, is_train=is_train)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_every_base_that_runs_here_passes(options: dict[str, Any], tmp_path: Path) -> None:
    check_options({**options, "base_model": "SRModel"}, is_train=True)
    check_options(with_gan(with_network(options, RRDB, tmp_path)), is_train=True)
    entry = {"op_names": ["conv_after_body"], "quant_dtype": "int4"}
    swinir = with_network(options, SWINIR, tmp_path, config_list=[entry])
    check_options({**swinir, "base_model": "SwinIRModel"}, is_train=True)


def test_a_discriminator_is_not_needed_to_test(photo_folders: Path, tmp_path: Path) -> None:
    options = evaluation_options(photo_folders, float_checkpoint(tmp_path / "float.pth"))
    check_options({**options, "base_model": "ESRGANModel"}, is_train=False)


def test_unknown_and_ignored_bases(options: dict[str, Any]) -> None:
    assert refused({**options, "base_model": "SwinIRModle"}).endswith("; did you mean 'SwinIRModel'?")
    stock = {**changed(options, "quantization", Missing), "model_type": "SRModel", "base_model": "ESRGANModel"}
    assert refused(stock) == (
        "base_model: the key is given but model_type is 'SRModel', which ignores it; "
        "set model_type: QuantSRModel, or delete the key"
    )


def test_what_a_base_needs_is_named(options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    assert refused({**options, "base_model": "SwinIRModel"}) == (
        "base_model: SwinIRModel pads images to network_g: window_size, which is missing; add it, or delete base_model"
    )
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert refused({**options, "base_model": "RealESRNetModel"}) == (
        "base_model: RealESRNetModel simulates JPEG on a GPU and this machine has none; train it on one"
    )


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        (
            "network_d",
            Missing,
            "network_d is missing, and base_model: ESRGANModel trains a discriminator; add it",
        ),
        (
            "train:optim_d",
            Missing,
            "train: optim_d is missing, and base_model: ESRGANModel trains a discriminator; add it",
        ),
        (
            "train:gan_opt",
            None,
            "train: gan_opt is missing, and base_model: ESRGANModel trains a discriminator; add it",
        ),
        ("train:optim_d", {"type": "Adam"}, "train: optim_d: key 'lr' is missing; add it, as in the files of"),
        ("train:gan_opt", 3, "train: gan_opt: 3 is not a block of keys; add its keys below it, indented"),
        ("network_d:type", "UNetDiscriminatorNS", "network_d: type: 'UNetDiscriminatorNS' is not known; did you mean"),
    ],
)
def test_a_discriminator_needs_its_keys(options: dict[str, Any], key: str, value: Any, message: str) -> None:
    assert refused(changed(with_gan(options), key, value)).startswith(message)


def test_stock_training_with_an_average_from_a_flat_file(options: dict[str, Any], tmp_path: Path) -> None:
    """BasicSR looks for ``params_ema`` there, and would stop after it had made its folders."""
    stock = {**changed(options, "quantization", Missing), "model_type": "SRModel"}
    flat = tmp_path / "flat.pth"
    torch.save(torch.load(stock["path"]["pretrain_network_g"], weights_only=True)["params"], flat)
    stock["path"] = {"pretrain_network_g": str(flat), "param_key_g": None}
    assert refused(stock) == (
        f"train: ema_decay: SRModel cannot start an average from a flat file like '{flat}'; "
        "give ema_decay: 0, or save the file as {params: ...}"
    )
    check_options(changed(stock, "train:ema_decay", 0), is_train=True)
    quantized = {**copy.deepcopy(options), "network_g": NETWORK}
    quantized["path"] |= {"pretrain_network_g": str(flat), "param_key_g": None}
    check_options(quantized, is_train=True)
