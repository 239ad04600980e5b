"""``base_model``: every pipeline of BasicSR keeps its own step, and gains quantizers."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from basicsr.models import build_model, realesrnet_model
from basicsr.models.esrgan_model import ESRGANModel
from basicsr.models.sr_model import SRModel
from basicsr.utils.registry import MODEL_REGISTRY

import srq_nni
from srq_nni import checkpoint
from srq_nni.errors import OptionError
from srq_nni.models.base import NetworkBlock, find_base_model
from srq_nni.models.injected_loss import inject
from srq_nni.models.quant_sr_model import QuantSRModel
from srq_nni.quantization.layers import activation_quantizers, set_mode
from tests.models.steps import DDTB, same, state, train
from tests.sr_data import changed, float_checkpoint

pytestmark = [
    pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step"),
    pytest.mark.filterwarnings("ignore:torch.meshgrid"),
]
RRDB = {"type": "RRDBNet", "num_in_ch": 3, "num_out_ch": 3, "scale": 2, "num_feat": 8, "num_block": 1, "num_grow_ch": 4}
SWINIR = {
    "type": "SwinIR",
    "upscale": 2,
    "in_chans": 3,
    "img_size": 48,
    "window_size": 8,
    "img_range": 1.0,
    "depths": [2],
    "embed_dim": 12,
    "num_heads": [2],
    "mlp_ratio": 2,
    "upsampler": "pixelshuffledirect",
    "resi_connection": "1conv",
}
MSRRESNET = {"type": "MSRResNet", "num_in_ch": 3, "num_out_ch": 3, "num_feat": 8, "num_block": 1, "upscale": 2}
BODY = {"op_types": ["Conv2d"], "op_names_re": [r"body\."], "quant_dtype": "int4"}
GAN = {
    "network_d": {"type": "UNetDiscriminatorSN", "num_in_ch": 3, "num_feat": 4},
    "base_model": "ESRGANModel",
}
GAN_TRAIN = {
    "optim_d": {"type": "Adam", "lr": 1e-4, "betas": [0.9, 0.99]},
    "gan_opt": {"type": "GANLoss", "gan_type": "vanilla", "real_label_val": 1.0, "fake_label_val": 0.0}
    | {"loss_weight": 0.1},
    "net_d_iters": 1,
    "net_d_init_iters": 0,
}


def with_network(options: dict[str, Any], network: dict[str, Any], folder: Path, **block: Any) -> dict[str, Any]:
    """Return options that train ``network``, quantized by a config_list of its body, without a teacher."""
    options = copy.deepcopy(options)
    path = float_checkpoint(folder / "network.pth", network)
    options |= {"network_g": network, "quantization": {"quantizer": "pams", "config_list": [BODY], **block}}
    options["path"] |= {"pretrain_network_g": path, "pretrain_network_t": path}
    del options["train"]["skt_opt"]
    return options


def with_gan(options: dict[str, Any]) -> dict[str, Any]:
    options = {**copy.deepcopy(options), **copy.deepcopy(GAN)}
    options["train"] |= copy.deepcopy(GAN_TRAIN)
    return options


def test_the_default_is_srmodel(options: dict[str, Any]) -> None:
    for given in (options, {**options, "base_model": "SRModel"}):
        assert type(build_model(given)) is QuantSRModel


def test_the_class_stands_between_quantization_and_base(options: dict[str, Any]) -> None:
    model = build_model(with_gan(options))
    assert type(model).__name__ == "QuantESRGANModel"
    assert isinstance(model, QuantSRModel) and isinstance(model, ESRGANModel)
    order = type(model).__mro__
    assert order.index(QuantSRModel) < order.index(ESRGANModel) < order.index(SRModel)
    assert type(build_model(with_gan(options))) is type(model)


def test_a_subclass_of_a_user_extends_the_base_as_well(options: dict[str, Any]) -> None:
    class Mine(QuantSRModel):
        pass

    assert isinstance(Mine(with_gan(options)), ESRGANModel)
    assert type(Mine(copy.deepcopy(options))) is Mine


@pytest.mark.parametrize("name", ["RealESRNetModel", "RealESRNetModel_basicsr", "RealESRGANModel", "VideoBaseModel"])
def test_every_model_below_srmodel_is_found_by_its_name(name: str) -> None:
    assert find_base_model(name).__name__ == name.removesuffix("_basicsr")


def test_a_wrong_base_is_one_sentence(options: dict[str, Any]) -> None:
    names = sorted({k.removesuffix("_basicsr") for k, m in MODEL_REGISTRY if issubclass(m, SRModel)} - {"QuantSRModel"})
    for given, expected in [
        ("ESRGANModle", "base_model: 'ESRGANModle' is not known; give one of {}; did you mean 'ESRGANModel'?"),
        (3, "base_model: 3 is not known; give one of {}"),
        (
            "StyleGAN2Model",
            "base_model: 'StyleGAN2Model' does not train one network as SRModel does; "
            "give a model that derives from SRModel: {}",
        ),
        (
            "QuantSRModel",
            "base_model: 'QuantSRModel' does not train one network as SRModel does; "
            "give a model that derives from SRModel: {}",
        ),
    ]:
        with pytest.raises(OptionError) as caught:
            build_model({**options, "base_model": given})
        head, tail = expected.split("{}")
        text = str(caught.value)
        assert text.startswith(head) and text.endswith(tail) and "\n" not in text
        assert sorted(text.removeprefix(head).removesuffix(tail).split(", ")) == names


def test_a_base_reads_the_float_networks_block() -> None:
    block = NetworkBlock(type="QuantizedNetwork", base={"type": "SwinIR", "window_size": 8}, quantization={})
    for copied in (block, copy.deepcopy(block)):
        assert (copied["type"], copied["window_size"], copied.get("window_size")) == ("QuantizedNetwork", 8, 8)
        assert copied.get("depth") is None and copied.get("depth", 3) == 3
        assert set(dict(**copied)) == {"type", "base", "quantization"}
        with pytest.raises(KeyError):
            copied["depth"]


def test_an_injected_loss_counts_as_a_summand_and_once() -> None:
    x, w = torch.randn(5, requires_grad=True), torch.randn(5, requires_grad=True)
    hidden = x * w
    output = hidden.square()
    expected = torch.autograd.grad(output.mean() + hidden.sin().sum(), (x, w), retain_graph=True)
    injected = inject(output, hidden.sin().sum())
    assert torch.equal(injected, output)
    first = torch.autograd.grad(injected.mean(), (x, w), retain_graph=True)
    assert all(torch.equal(a, b) for a, b in zip(first, expected, strict=True))
    second = torch.autograd.grad(injected.mean(), (x, w), retain_graph=True)
    plain = torch.autograd.grad(output.mean(), (x, w))
    assert all(torch.equal(a, b) for a, b in zip(second, plain, strict=True))


@pytest.mark.parametrize("gan", [False, True])
def test_with_quantizers_off_the_base_trains_bit_for_bit_as_stock(
    options: dict[str, Any],
    batches: list[dict[str, torch.Tensor]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    gan: bool,
) -> None:
    options = with_network(options, RRDB, tmp_path, calibration_iters=1)
    options = with_gan(options) if gan else options
    stock = {**copy.deepcopy(options), "model_type": options.get("base_model", "SRModel")}
    del stock["quantization"]
    logs, networks = [], []
    monkeypatch.setattr(QuantSRModel, "set_phase", lambda self, _: set_mode(self.net_g, "float"))
    for given in (stock, options):
        torch.manual_seed(0)
        model = build_model(given)
        logs.append(train(model, batches, 1, 5))
        networks.append((state(model), model.net_g_ema.state_dict()))
    assert logs[0] == logs[1]
    assert ("l_g_gan" in logs[0][0]) is gan
    for float_state, quantized in zip(*networks, strict=True):
        kept = {key: value for key, value in quantized.items() if not checkpoint.is_quantizer_key(key)}
        assert same(kept, dict(float_state))


@pytest.mark.parametrize("block", [{}, {k: v for k, v in DDTB.items() if k != "bits"}])
def test_a_gan_trains_saves_and_resumes_quantized(
    options: dict[str, Any], batches: list[dict[str, torch.Tensor]], tmp_path: Path, block: dict[str, Any]
) -> None:
    options = with_gan(with_network(options, RRDB, tmp_path, **({"calibration_iters": 1} | block)))
    options["train"]["skt_opt"] = {"type": "SKTLoss", "loss_weight": 3.92}
    options["quantization"]["feature"] = "conv_up1"
    torch.manual_seed(0)
    whole = build_model(options)
    discriminator = copy.deepcopy(whole.net_d.state_dict())
    logs = train(whole, batches, 1, 6)
    assert {"l_g_pix", "l_g_gan", "l_skt", "l_d_real", "l_d_fake", "out_d_real"} <= set(logs[-1])
    assert ("l_gate" in logs[3]) is bool(block)
    assert all(torch.isfinite(torch.tensor(list(log.values()))).all() for log in logs)
    assert not same(discriminator, whole.net_d.state_dict())

    torch.manual_seed(0)
    first = build_model(options)
    train(first, batches, 1, 3)
    first.save(0, 3)
    models = Path(options["path"]["models"])
    assert sorted(file.name for file in models.iterdir()) == ["net_d_3.pth", "net_g_3.pth"]
    assert set(checkpoint.read(models / "net_d_3.pth")) == {"params"}
    resumed = changed(options, "path:pretrain_network_g", str(models / "net_g_3.pth"))
    resumed["path"]["pretrain_network_d"] = str(models / "net_d_3.pth")
    second = build_model(resumed)
    second.resume_training(torch.load(Path(options["path"]["training_states"]) / "3.state", weights_only=True))
    train(second, batches, 4, 6)
    assert same(state(second), state(whole))
    assert same(second.net_d.state_dict(), whole.net_d.state_dict())
    assert len(list(activation_quantizers(srq_nni.load(models / "net_g_3.pth")))) == 15


def test_swinir_trains_and_pads_to_its_windows(
    options: dict[str, Any], batches: list[dict[str, torch.Tensor]], tmp_path: Path
) -> None:
    entries = [
        {"op_names": ["conv_after_body"], "quant_dtype": "int4"},
        {"op_types": ["Linear"], "quant_dtype": "int8"},
    ]
    options = with_network(options, SWINIR, tmp_path, config_list=entries, calibration_iters=1)
    model = build_model({**options, "base_model": "SwinIRModel"})
    logs = train(model, batches, 1, 2)
    assert set(logs[0]) == {"l_pix"}
    assert len(list(activation_quantizers(model.net_g))) == 1 + 2 * 4
    model.feed_data({"lq": batches[0]["lq"][:, :, :45, :42]})
    model.test()
    assert model.output.shape == (2, 3, 90, 84)
    with torch.no_grad():
        padded = torch.nn.functional.pad(batches[0]["lq"][:, :, :45, :42], (0, 6, 0, 3), "reflect")
        assert torch.equal(model.output, model.net_g_ema(padded)[:, :, :90, :84])


def test_msrresnet_has_a_preset(
    options: dict[str, Any], batches: list[dict[str, torch.Tensor]], tmp_path: Path
) -> None:
    options = with_network(options, MSRRESNET, tmp_path)
    options["quantization"] = {"quantizer": "ddtb", "bits": 4, "calibration_iters": 1, "static_iters": 1}
    options["train"]["skt_opt"] = {"type": "SKTLoss", "loss_weight": 3.92}
    assert set(train(build_model(options), batches, 1, 3)[-1]) == {"l_pix", "l_skt"}


def test_realesrnet_synthesises_its_own_images(
    options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.nn.Module, "cuda", lambda self: self)
    monkeypatch.setattr(torch.Tensor, "cuda", lambda self: self)
    filter2d = realesrnet_model.filter2D  # on a CPU it trips over the strides of its own JPEG simulation
    monkeypatch.setattr(realesrnet_model, "filter2D", lambda image, kernel: filter2d(image.contiguous(), kernel))
    options = with_network(options, RRDB, tmp_path, calibration_iters=1)
    options |= {"base_model": "RealESRNetModel", "queue_size": 4, "gt_size": 16, "gt_usm": True}
    for suffix in ("", "2"):
        options |= {f"resize_prob{suffix}": [0.2, 0.7, 0.1], f"resize_range{suffix}": [0.3, 1.5]}
        options |= {f"gaussian_noise_prob{suffix}": 0.5, f"noise_range{suffix}": [1, 30]}
        options |= {f"poisson_scale_range{suffix}": [0.05, 3], f"gray_noise_prob{suffix}": 0.4}
        options |= {f"jpeg_range{suffix}": [30, 95]}
    options["second_blur_prob"] = 0.8
    kernel = torch.zeros(2, 21, 21)
    kernel[:, 10, 10] = 1.0
    data = {"gt": torch.rand(2, 3, 64, 64), "kernel1": kernel, "kernel2": kernel, "sinc_kernel": kernel}
    model = build_model(options)
    assert type(model).__name__ == "QuantRealESRNetModel"
    logs = train(model, [data], 1, 3)
    assert model.lq.shape == (2, 3, 8, 8) and all(set(log) == {"l_pix"} for log in logs)
