"""Keys that nothing reads: a misspelt one ends the run, any other gets a line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from basicsr.data.paired_image_dataset import PairedImageDataset
from basicsr.utils.registry import DATASET_REGISTRY, MODEL_REGISTRY

from srq_nni.cli.main import main
from srq_nni.errors import OptionError
from srq_nni.models.options import read_options
from srq_nni.models.preflight import check_options
from srq_nni.models.quant_sr_model import QuantSRModel
from srq_nni.models.unknown_keys import check_spelling
from tests.sr_data import REPOSITORY, Missing, changed, float_checkpoint, train_options, write_yaml


@pytest.fixture
def options(photo_folders: Path, tmp_path: Path) -> dict[str, Any]:
    return train_options(photo_folders, float_checkpoint(tmp_path / "float.pth"))


@pytest.mark.parametrize(
    ("wrong", "right"),
    [
        ("quantisation", "quantization"),
        ("manualseed", "manual_seed"),
        ("base-model", "base_model"),
        ("train:skt_opts", "skt_opt"),
        ("train:skt-opt", "skt_opt"),
        ("train:optim-q", "optim_q"),
        ("train:AMP", "amp"),
        ("train:channel_last", "channels_last"),
        ("train:ema-decay", "ema_decay"),
        ("train:pixel_opt2", "pixel_opt"),
        ("train:totaliter", "total_iter"),
        ("val:metric", "metrics"),
        ("val:save_imgs", "save_img"),
        ("val:metrics:psnr:test_y_chanel", "test_y_channel"),
        ("logger:use_tb_loger", "use_tb_logger"),
        ("datasets:train:use_hflips", "use_hflip"),
        ("datasets:val:filename_tmp", "filename_tmpl"),
    ],
)
def test_a_misspelt_key_ends_the_run(options: dict[str, Any], wrong: str, right: str) -> None:
    *parents, key = wrong.split(":")
    with pytest.raises(OptionError) as caught:
        check_options(changed(options, wrong, 1), is_train=True)
    assert str(caught.value) == "".join(f"{parent}: " for parent in parents) + (
        f"key '{key}' is not known; did you mean '{right}'?"
    )


@pytest.mark.parametrize(
    ("key", "place", "home"),
    [
        ("bits", "outside the blocks", "quantization"),
        ("total_iter", "outside the blocks", "train"),
        ("train:val_freq", "in 'train'", "val"),
        ("train:calibration_iters", "in 'train'", "quantization"),
        ("val:use_tb_logger", "in 'val'", "logger"),
    ],
)
def test_a_key_beside_its_block_ends_the_run(options: dict[str, Any], key: str, place: str, home: str) -> None:
    """BasicSR's code reads a key of that name, but not there."""
    name = key.rpartition(":")[2]
    with pytest.raises(OptionError) as caught:
        check_options(changed(options, key, 3), is_train=True)
    assert str(caught.value) == (
        f"key '{name}' has no effect {place}; move it into '{home}' (with --force_yml: {home}:{name}=..)"
    )


@pytest.mark.parametrize(
    ("key", "right", "message"),
    [
        ("datasets", "dataset", "key 'datasets' is missing; add it, or is 'dataset' a misspelling of it?"),
        ("network_g:type", "typ", "network_g: key 'type' is missing; add it, or is 'typ' a misspelling of it?"),
        ("train:optim_g:lr", "Lr", "train: optim_g: key 'lr' is missing; add it, or is 'Lr' a misspelling of it?"),
        ("val:val_freq", "valfreq", "val: key 'valfreq' is not known; did you mean 'val_freq'?"),
        ("quantization:bits", "bit", "quantization: key 'bit' is not known; allowed are quantizer, bits, profile"),
    ],
)
def test_a_missing_key_finds_its_misspelling(options: dict[str, Any], key: str, right: str, message: str) -> None:
    *parents, last = key.split(":")
    block = options
    for parent in parents:
        block = block[parent]
    block[right] = block.pop(last)
    with pytest.raises(OptionError) as caught:
        check_options(options, is_train=True)
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize("key", ["note", "train:ema", "val:own", "logger:file", "datasets:train:colour_space", "seed"])
def test_any_other_key_gets_a_line(options: dict[str, Any], key: str) -> None:
    *parents, last = key.split(":")
    assert check_options(changed(options, key, 1), is_train=True) == [
        "".join(f"{parent}: " for parent in parents) + f"key '{last}' is not known; nothing reads it"
    ]


def test_the_line_goes_to_the_terminal_and_the_run_starts(
    options: dict[str, Any], tmp_path: Path, work_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options["train"] |= {"total_iter": 1, "note": "tried on Monday"}
    main(["train", "-opt", write_yaml(tmp_path / "o.yml", options)])
    assert "srq: warning: train: key 'note' is not known; nothing reads it\n" in capsys.readouterr().err
    assert (work_folder / "experiments" / "tiny" / "models" / "net_g_latest.pth").exists()


@pytest.mark.parametrize("path", sorted((REPOSITORY / "basicsr_configs").rglob("*.yml")), ids=lambda path: path.stem)
def test_every_key_of_our_files_is_read(path: Path) -> None:
    assert check_spelling(read_options(path)) == []


def test_keys_of_other_models_and_datasets_are_read_from_their_code(options: dict[str, Any]) -> None:
    """None of these stands in the schema; BasicSR's ESRGANModel and its dataset of videos look them up."""
    gan = {"net_d_iters": 1, "net_d_init_iters": 0, "optim_d": {}, "gan_opt": {}}
    case = {**options, "base_model": "ESRGANModel", "network_d": {"type": "VGGStyleDiscriminator"}}
    case["train"] = {**options["train"], **gan}
    assert check_spelling(case) == []
    assert check_spelling(changed(case, "base_model", "SRModel")) == [
        f"train: key '{key}' is not known; nothing reads it" for key in gan
    ]
    video = {"name": "v", "type": "REDSDataset", "num_frame": 5, "interval_list": [1], "random_reverse": False}
    assert check_spelling(changed(options, "datasets:val", video)) == []


def test_models_and_datasets_of_others_may_read_what_they_like(
    options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their modules are searched, too; what is found nowhere may still be read somewhere, so it gets a line only."""
    model = type("OwnModel", (QuantSRModel,), {"__module__": __name__})
    dataset = type("OwnDataset", (PairedImageDataset,), {"__module__": __name__})
    monkeypatch.setitem(MODEL_REGISTRY._obj_map, "OwnModel", model)
    monkeypatch.setitem(DATASET_REGISTRY._obj_map, "OwnDataset", dataset)
    options |= {"model_type": "OwnModel"}
    options["train"] |= {"skt_opts": 1}
    options["datasets"]["val"] |= {"type": "OwnDataset", "use_hflips": 1, "a_key_of_this_module": 1}
    assert options.get("a_key_of_this_module") is None
    assert check_spelling(options) == [
        "train: key 'skt_opts' is not known to BasicSR and srq-nni",
        "datasets: val: key 'use_hflips' is not known to BasicSR and srq-nni",
    ]


def test_arguments_of_every_loss_are_looked_at(options: dict[str, Any]) -> None:
    """Without building it: a perceptual loss would load VGG."""
    options["train"]["perceptual_opt"] = {"type": "PerceptualLoss", "layer_weight": {"conv5_4": 1}}
    with pytest.raises(OptionError) as caught:
        check_options(options, is_train=True)
    assert str(caught.value) == ("train: perceptual_opt: got an unexpected keyword argument 'layer_weight'; mend it")
    assert check_spelling(changed(options, "train:perceptual_opt", Missing)) == []
