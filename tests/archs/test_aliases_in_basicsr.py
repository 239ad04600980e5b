"""``PAMS_EDSR`` and its like with BasicSR's SRModel: train, average, resume, validate, test; and what is refused."""

from __future__ import annotations

import logging
import re
import shutil
from pathlib import Path
from typing import Any

import basicsr.utils.logger
import pytest
import torch
from basicsr.models import build_model
from basicsr.models.sr_model import SRModel

from srq_nni.archs.aliases_arch import two_blocks
from srq_nni.archs.quantized_arch import QuantizedNetwork, build_float
from srq_nni.cli.main import main
from srq_nni.compression.phases import observing, start_bounds_and_gates
from srq_nni.errors import CheckpointError, OptionError
from srq_nni.models import cpu_distributed
from srq_nni.models.preflight import check_options
from srq_nni.quantization.layers import activation_quantizers
from tests.sr_data import NETWORK, REPOSITORY, changed, evaluation_options, float_checkpoint, train_options, write_yaml

TINY = {key: value for key, value in NETWORK.items() if key != "type"} | {"bits": 4, "calibration_iters": 3}
MODELS = Path("experiments") / "tiny" / "models"


def stock_options(folders: Path, tmp_path: Path, name: str = "PAMS_EDSR", **changes: Any) -> dict[str, Any]:
    """Return options of BasicSR's SRModel; a float checkpoint is loaded strictly."""
    options = train_options(folders, float_checkpoint(tmp_path / "float.pth"))
    del options["quantization"], options["train"]["skt_opt"], options["path"]["pretrain_network_t"]
    options["path"]["strict_load_g"] = True
    options["train"]["ema_decay"] = 0.999
    return options | {"model_type": "SRModel", "network_g": {"type": name, **TINY, **changes}}


@pytest.fixture
def fresh_log() -> None:
    """Let BasicSR set up its logger again: whoever builds a network outside of a run has set it up without files."""
    logger = logging.getLogger("basicsr")
    for handler in list(logger.handlers):
        logger.removeHandler(handler)
        handler.close()
    basicsr.utils.logger.initialized_logger.clear()


def last_psnr(folder: Path) -> str:
    """Return the last PSNR in the log of a run."""
    return re.findall(r"# psnr: (\d+\.\d+)", "".join(log.read_text() for log in folder.glob("*.log")))[-1]


@pytest.mark.parametrize("name", ["PAMS_EDSR", "DDTB_EDSR"])
@pytest.mark.parametrize("param_key", ["params", "params_ema"])
def test_train_and_test_with_stock_files(
    photo_folders: Path, tmp_path: Path, fresh_log: None, work_folder: Path, name: str, param_key: str
) -> None:
    options = stock_options(photo_folders, tmp_path, name)
    if param_key == "params":
        options["train"]["ema_decay"] = 0
    main(["train", "-opt", write_yaml(tmp_path / "train.yml", options)])
    tested = evaluation_options(photo_folders, str(work_folder / MODELS / "net_g_latest.pth"))
    del tested["quantization"]
    tested |= {"model_type": "SRModel", "network_g": options["network_g"]}
    tested["path"] |= {"param_key_g": param_key, "strict_load_g": True}
    basicsr.utils.logger.initialized_logger.clear()  # the log of another process
    main(["test", "-opt", write_yaml(tmp_path / "test.yml", tested)])
    assert last_psnr(Path("results") / "tiny") == last_psnr(Path("experiments") / "tiny")


def one_batch(options: dict[str, Any], folders: Path, tmp_path: Path) -> dict[str, Any]:
    """Return options under which every batch is the same, so that a resumed run can equal an uninterrupted one."""
    for key, file in (("dataroot_gt", "HR/rocket.png"), ("dataroot_lq", "LR_bicubic/X2/rocketx2.png")):
        folder = tmp_path / key
        folder.mkdir()
        shutil.copy(folders / file, folder)
        options = changed(options, f"datasets:train:{key}", str(folder))
    options["datasets"]["train"] |= {"gt_size": 96, "use_hflip": False, "use_rot": False}
    options["train"]["total_iter"] = 9
    return options


@pytest.mark.parametrize("stop", [3, 5, 9])
@pytest.mark.parametrize("name", ["PAMS_EDSR", "DDTB_EDSR"])
def test_a_stopped_run_ends_with_the_same_weights(
    photo_folders: Path, tmp_path: Path, work_folder: Path, monkeypatch: pytest.MonkeyPatch, name: str, stop: int
) -> None:
    options = stock_options(photo_folders, tmp_path, name, calibration_iters=4)
    path = write_yaml(tmp_path / "o.yml", one_batch(options, photo_folders, tmp_path))
    main(["train", "-opt", path])
    whole = torch.load(MODELS / "net_g_latest.pth", weights_only=True)
    shutil.rmtree("experiments")
    optimize = SRModel.optimize_parameters

    def stopping(model: Any, iteration: int) -> None:
        if iteration == stop:
            raise KeyboardInterrupt
        optimize(model, iteration)

    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(SRModel, "optimize_parameters", stopping)
        main(["train", "-opt", path])
    main(["train", "-opt", path, "--auto_resume"])
    resumed = torch.load(MODELS / "net_g_latest.pth", weights_only=True)
    for part in ("params", "params_ema"):
        assert whole[part].keys() == resumed[part].keys()
        differing = [key for key, value in whole[part].items() if not torch.equal(value, resumed[part][key])]
        assert not differing


def stock_model(options: dict[str, Any]) -> SRModel:
    return build_model({**options, "is_train": True, "dist": False})


@pytest.mark.parametrize("name", ["PAMS_EDSR", "DDTB_EDSR"])
def test_the_average_validates_well_from_the_start(photo_folders: Path, tmp_path: Path, name: str) -> None:
    """With a decay of 0.999 the average of a bound is still near 10 after some iterations; the features reach 200."""
    from tests.sr_data import batch

    options = stock_options(photo_folders, tmp_path, name)
    options["network_g"] |= {"num_feat": 32, "num_block": 5, "bits": 8}
    options["path"] |= {"pretrain_network_g": str(REPOSITORY / "weights" / "EDSR_x2_f32b5.pth")}
    model = stock_model(options)
    data = batch(photo_folders, "astronaut", "chelsea")
    for iteration in range(1, 6):
        model.feed_data(data)
        model.optimize_parameters(iteration)
    bounds = {key: quantizer.bounds() for key, quantizer in activation_quantizers(model.net_g_ema)}
    assert max(float(bound.detach().abs().max()) for pair in bounds.values() for bound in pair) < 13
    errors = {}
    for label, net in (("net_g", model.net_g), ("net_g_ema", model.net_g_ema)):
        with torch.no_grad():
            errors[label] = float((net.eval()(data["lq"]) - data["gt"]).square().mean())
    assert errors["net_g_ema"] == pytest.approx(errors["net_g"], rel=0.2)


@pytest.mark.parametrize("name", ["PAMS_EDSR", "DDTB_EDSR"])
def test_training_learns(photo_folders: Path, tmp_path: Path, name: str) -> None:
    from tests.sr_data import batch

    options = stock_options(photo_folders, tmp_path, name, num_feat=32, num_block=5, bits=2, calibration_iters=5)
    options["path"] |= {"pretrain_network_g": str(REPOSITORY / "weights" / "EDSR_x2_f32b5.pth")}
    options["train"] |= {"optim_g": {"type": "Adam", "lr": 1e-3}, "ema_decay": 0}
    model = stock_model(options)
    losses = []
    for iteration in range(1, 41):
        model.feed_data(batch(photo_folders, "coffee"))
        model.optimize_parameters(iteration)
        losses.append(model.log_dict["l_pix"])
    assert sum(losses[-5:]) < 0.7 * sum(losses[:5])


@pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step")  # DDTB observes before the first step
def test_the_checkpoint_of_a_quant_sr_model_goes_on_here(
    photo_folders: Path, tmp_path: Path, work_folder: Path
) -> None:
    options = train_options(photo_folders, float_checkpoint(tmp_path / "float.pth"))
    options["quantization"] = {"quantizer": "ddtb", "bits": 4, "calibration_iters": 1, "static_iters": 1}
    options["quantization"]["dynamic_ratio"] = 0.5
    main(["train", "-opt", write_yaml(tmp_path / "o.yml", options)])
    trained = tmp_path / "trained.pth"
    shutil.copy(MODELS / "net_g_latest.pth", trained)
    before = torch.load(trained, weights_only=True)["params"]
    upper = "body.0.conv1.input_quantizer.upper"

    stock = changed(stock_options(photo_folders, tmp_path, "DDTB_EDSR"), "path:pretrain_network_g", str(trained))
    stock["train"]["total_iter"] = 1
    main(["train", "-opt", write_yaml(tmp_path / "stock.yml", stock)])
    after = torch.load(MODELS / "net_g_latest.pth", weights_only=True)["params"]
    assert after.keys() == before.keys(), "gates stay, and calibration does not start again"
    assert 0 < (after[upper] - before[upper]).abs() < 1e-3

    with pytest.raises(CheckpointError, match=r"was made with percentile: None and the options say percentile: 95"):
        check_options(changed(stock, "network_g:percentile", 95.0), is_train=True)


# --- what is refused before a run


@pytest.fixture
def stock(photo_folders: Path, tmp_path: Path) -> dict[str, Any]:
    return stock_options(photo_folders, tmp_path)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        (
            "train:skt_opt",
            {"type": "SKTLoss", "loss_weight": 3.92},
            "train: skt_opt: model_type 'SRModel' has no place for SKT; delete the key, or set model_type: "
            "QuantSRModel with a quantization block",
        ),
        (
            "train:distill_opt",
            {"type": "L1Loss"},
            "train: distill_opt: model_type 'SRModel' has no place for a teacher; delete the key, or set model_type: "
            "QuantSRModel with a quantization block",
        ),
        (
            "train:optim_q",
            {"lr": 1e-2},
            "train: optim_q: model_type 'SRModel' has no place for the bounds' own learning rate; delete the key, or "
            "set model_type: QuantSRModel with a quantization block",
        ),
        (
            "network_g",
            {"type": "PAMS_SRResNet", "bits": 4, "num_feat": 8, "num_block": 1, "upscale": 2},
            "train: ema_decay: model_type 'SRModel' averages no batch statistics, which PAMS_SRResNet has; give "
            "ema_decay: 0, or set model_type: QuantSRModel with a quantization block",
        ),
        (
            "network_g:bit",
            2,
            "network_g: key 'bit' is not known to PAMS_EDSR; allowed are num_in_ch, num_out_ch, num_feat, num_block, "
            "upscale, res_scale, img_range, rgb_mean, bits, wiring, config_list, calibration, calibration_iters, "
            "percentile, limit_levels; did you mean 'bits'?",
        ),
        ("network_g:type", "PAMS_EDRS", "network_g: type 'PAMS_EDRS' is not known; give a registered network; did you "
         "mean 'PAMS_EDSR'?"),
    ],
)  # fmt: skip
def test_what_a_stock_model_would_ignore(stock: dict[str, Any], key: str, value: Any, message: str) -> None:
    with pytest.raises(OptionError) as caught:
        check_options(changed(stock, key, value), is_train=True)
    assert str(caught.value) == message


def test_whole_options_pass(stock: dict[str, Any]) -> None:
    check_options(stock, is_train=True)
    check_options(changed(stock, "path:pretrain_network_g", None), is_train=True)


def test_such_a_network_in_a_quant_sr_model_is_refused(photo_folders: Path, tmp_path: Path) -> None:
    options = train_options(photo_folders, float_checkpoint(tmp_path / "float.pth"))
    with pytest.raises(OptionError) as caught:
        check_options(changed(options, "network_g", {"type": "PAMS_EDSR", **TINY}), is_train=True)
    assert str(caught.value) == (
        "network_g: PAMS_EDSR has quantizers of its own, and model_type 'QuantSRModel' inserts those of the "
        "'quantization:' block; give type: EDSR and quantizer: pams there, or set model_type: SRModel and delete the "
        "block"
    )


def test_several_gpus_need_a_launcher(stock: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(OptionError, match="num_gpu: 2 without a launcher means DataParallel"):
        check_options(changed(stock, "num_gpu", 2), is_train=True)


def test_stored_gates_do_not_train_in_several_processes(
    stock: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cpu_distributed, "_enabled", True)
    options = changed(stock, "network_g:type", "DDTB_EDSR")
    base, block = two_blocks(options["network_g"])
    model, file = QuantizedNetwork(base, block), tmp_path / "gates.pth"
    options["path"]["pretrain_network_g"] = str(file)
    torch.save({"params": model.state_dict()}, file)
    check_options(options, is_train=True, launcher="pytorch")
    with observing(model):
        model(torch.rand(2, 3, 9, 9))
    start_bounds_and_gates(model, 0.5)
    torch.save({"params": model.state_dict()}, file)
    check_options(options, is_train=True)
    with pytest.raises(OptionError) as caught:
        check_options(options, is_train=True, launcher="pytorch")
    assert str(caught.value) == (
        f"path: pretrain_network_g: '{file}' has gates, which model_type 'SRModel' would train apart in each process; "
        "leave --launcher out, or set model_type: QuantSRModel with a quantization block"
    )


def test_files_that_do_not_fit(stock: dict[str, Any], photo_folders: Path, tmp_path: Path) -> None:
    file = tmp_path / "bad.pth"
    options = changed(stock, "path:pretrain_network_g", str(file))

    def refused(state: dict[str, Any], is_train: bool = True) -> str:
        torch.save({"params": state}, file)
        with pytest.raises((CheckpointError, OptionError)) as caught:
            check_options(options if is_train else tested, is_train=is_train)
        return str(caught.value)

    base, block = two_blocks(stock["network_g"])
    quantized = QuantizedNetwork(base, block | {"bits": 2}).state_dict()
    assert refused(quantized) == (
        f"path: pretrain_network_g: '{file}': the checkpoint does not fit PAMS_EDSR: body.0.conv1.input_quantizer was "
        "saved with 2 bits and the network has 4; make network_g: bits equal, or give a float checkpoint"
    )
    weights = build_float(base).state_dict()
    assert refused({key: value for key, value in weights.items() if key != "conv_last.bias"}) == (
        f"path: pretrain_network_g: '{file}': the checkpoint does not fit PAMS_EDSR: it lacks conv_last.bias; give one "
        "of the same architecture, or the right param_key_g"
    )
    wide = build_float(base | {"num_feat": 16}).state_dict()
    assert refused(wide).startswith(f"path: pretrain_network_g: '{file}' does not fit network_g: size mismatch for ")
    tested = evaluation_options(photo_folders, str(file)) | {"model_type": "SRModel", "network_g": stock["network_g"]}
    del tested["quantization"]
    assert refused(weights, is_train=False) == (
        f"path: pretrain_network_g: '{file}' is a float checkpoint, and PAMS_EDSR has no bounds without training; give "
        "a checkpoint that was trained with this network_g"
    )
    del tested["path"]["pretrain_network_g"]
    with pytest.raises(OptionError, match="pretrain_network_g is missing; give the checkpoint to test"):
        check_options(tested, is_train=False)
