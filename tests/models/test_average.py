"""EMA: against a computation by hand through all phases, and the network that validation sees."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from basicsr.data import build_dataloader, build_dataset
from basicsr.metrics import calculate_metric
from basicsr.models import build_model
from basicsr.utils import tensor2img

from srq_nni import checkpoint
from srq_nni.archs.quantized_arch import QuantizedNetwork, build_float
from srq_nni.quantization.layers import activation_quantizers, add_stored_gates
from tests.models.steps import DDTB, same, train
from tests.sr_data import NETWORK, changed, float_checkpoint, images

pytestmark = pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step")
DECAY = 0.9
SRRESNET = {"type": "SRResNet", "num_feat": 8, "num_block": 2, "upscale": 2}
PAMS = {"quantizer": "pams", "bits": 4, "calibration_iters": 3}


class ByHand:
    """The average as the docstrings describe it, kept by name in a dictionary."""

    def __init__(self, model: Any) -> None:
        self.values = {name: p.detach().clone() for name, p in model.net_g.named_parameters()}

    def step(self, model: Any, iteration: int, calibration: int, *, ddtb: bool) -> None:
        if ddtb and iteration <= calibration:
            return  # nothing was updated
        live = {name: p.detach() for name, p in model.net_g.named_parameters()}
        for name, value in live.items():
            copied = ".alpha" in name and iteration <= calibration
            old = self.values[name]
            self.values[name] = value.clone() if copied else DECAY * old + (1 - DECAY) * value


def quantizer_parameters(model: Any) -> dict[str, torch.Tensor]:
    return {n: p.detach().clone() for n, p in model.net_g.named_parameters() if checkpoint.is_quantizer_key(n)}


def with_network(options: dict[str, Any], network: dict[str, Any], block: dict[str, Any], path: Path) -> dict[str, Any]:
    file = float_checkpoint(path / f"{network['type']}.pth", network)
    options = changed(changed(options, "network_g", network), "quantization", block)
    options["path"] |= {"pretrain_network_g": file, "pretrain_network_t": file}
    return options


@pytest.mark.parametrize("network", [NETWORK, SRRESNET])
@pytest.mark.parametrize("block", [PAMS, DDTB])
def test_the_average_is_the_one_computed_by_hand(
    options: dict[str, Any],
    batches: list[dict[str, torch.Tensor]],
    tmp_path: Path,
    network: dict[str, Any],
    block: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = build_model(with_network(options, network, block, tmp_path))
    hand = ByHand(model)
    original = type(model)._start_gates

    def start(self: Any, net: torch.nn.Module) -> None:
        original(self, net)
        hand.values |= quantizer_parameters(self)  # bounds and gates start here, in both networks

    monkeypatch.setattr(type(model), "_start_gates", start)
    for iteration in range(1, 9):
        train(model, batches, iteration, iteration)
        hand.step(model, iteration, block["calibration_iters"], ddtb=block["quantizer"] == "ddtb")
    smooth = dict(model.net_g_ema.named_parameters())
    assert smooth.keys() == hand.values.keys()
    for name, value in smooth.items():
        torch.testing.assert_close(value.detach(), hand.values[name], rtol=1e-5, atol=1e-7, msg=name)
    live = dict(model.net_g.named_parameters())
    moved = [name for name in smooth if not torch.equal(smooth[name], live[name])]
    assert any(checkpoint.is_quantizer_key(name) for name in moved) and len(moved) > len(smooth) / 2
    assert same(dict(model.net_g_ema.named_buffers()), dict(model.net_g.named_buffers()))


def test_weights_alone_are_averaged_too(options: dict[str, Any], batches: list[dict[str, torch.Tensor]]) -> None:
    """Without activation quantizers a network may have no buffer."""
    weights = {"op_types": ["Conv2d"], "target_names": ["weight"], "quant_dtype": "int4"}
    model = build_model(changed(options, "quantization", {"quantizer": "pams", "config_list": [weights]}))
    assert not list(model.net_g.buffers())
    before = model.net_g.get_parameter("conv_last.weight").detach().clone()
    train(model, batches, 1, 1)
    live = model.net_g.get_parameter("conv_last.weight").detach()
    expected = DECAY * before + (1 - DECAY) * live
    torch.testing.assert_close(model.net_g_ema.get_parameter("conv_last.weight").detach(), expected)
    assert not torch.equal(before, live)


@pytest.mark.parametrize("block", [PAMS, DDTB])
def test_bounds_under_calibration_are_copied(
    options: dict[str, Any], batches: list[dict[str, torch.Tensor]], block: dict[str, Any]
) -> None:
    model = build_model(changed(options, "quantization", block))
    for iteration in range(1, block["calibration_iters"] + 1):
        train(model, batches, iteration, iteration)
        ema = dict(activation_quantizers(model.net_g_ema))
        for name, quantizer in activation_quantizers(model.net_g):
            for new, old in zip(quantizer.bounds(), ema[name].bounds(), strict=True):
                assert torch.equal(new, old)


@pytest.mark.parametrize("block", [PAMS, DDTB])
def test_validation_sees_the_hand_made_network(
    options: dict[str, Any], batches: list[dict[str, torch.Tensor]], photo_folders: Path, block: dict[str, Any]
) -> None:
    options = changed(options, "quantization", block)
    options["train"]["optim_g"]["lr"] = 1e-2
    model = build_model(options)
    hand = ByHand(model)
    for iteration in range(1, 9):
        if iteration == block["calibration_iters"] + 1 and block["quantizer"] == "ddtb":
            model.set_phase(iteration)
            hand.values |= quantizer_parameters(model)
            model._start_gates = lambda net: None
        train(model, batches, iteration, iteration)
        hand.step(model, iteration, block["calibration_iters"], ddtb=block["quantizer"] == "ddtb")

    dataset = build_dataset({**images("val", photo_folders), "phase": "val", "scale": 2})
    loader = build_dataloader(dataset, dataset.opt, num_gpu=0, dist=False, sampler=None, seed=1)
    model.validation(loader, 8, None, False)
    network = QuantizedNetwork(NETWORK, block)
    add_stored_gates(network, model.net_g.state_dict())
    network.load_state_dict({**dict(model.net_g.named_buffers()), **hand.values})
    network.eval()
    scores = []
    for data in dataset:
        with torch.no_grad():
            output = network(data["lq"][None])
        pictures = {"img": tensor2img([output]), "img2": tensor2img([data["gt"][None]])}
        scores.append(calculate_metric(pictures, options["val"]["metrics"]["psnr"]))
    assert model.metric_results["psnr"] == pytest.approx(sum(scores) / len(scores), abs=2e-3)
    live = build_float(NETWORK)
    live.load_state_dict({k: v for k, v in model.net_g.state_dict().items() if not checkpoint.is_quantizer_key(k)})
    assert not torch.equal(live.conv_last.weight, model.net_g_ema.conv_last.weight)


@pytest.mark.parametrize("param_key", ["params", None])
def test_a_flat_file_starts_network_and_average(
    options: dict[str, Any], batches: list[dict[str, torch.Tensor]], tmp_path: Path, param_key: str | None
) -> None:
    torch.manual_seed(3)
    flat = build_float(NETWORK).state_dict()
    torch.save(flat, tmp_path / "flat.pt")
    options["path"] |= {"pretrain_network_g": str(tmp_path / "flat.pt"), "param_key_g": param_key}
    model = build_model(options)
    for net in (model.net_g, model.net_g_ema):
        assert all(torch.equal(net.state_dict()[key], value) for key, value in flat.items())
    train(model, batches, 1, 2)


def test_the_average_of_a_float_file_survives_the_start_of_the_gates(
    options: dict[str, Any], batches: list[dict[str, torch.Tensor]], tmp_path: Path
) -> None:
    torch.manual_seed(3)
    first, second = build_float(NETWORK).state_dict(), build_float(NETWORK).state_dict()
    torch.save({"params": first, "params_ema": second}, tmp_path / "both.pth")
    options["path"]["pretrain_network_g"] = str(tmp_path / "both.pth")
    model = build_model(changed(options, "quantization", DDTB))
    train(model, batches, 1, 2)
    model.set_phase(3)
    assert all(torch.equal(model.net_g.state_dict()[key], value) for key, value in first.items())
    assert all(torch.equal(model.net_g_ema.state_dict()[key], value) for key, value in second.items())
    assert same(
        {k: v for k, v in model.net_g.state_dict().items() if checkpoint.is_quantizer_key(k)},
        {k: v for k, v in model.net_g_ema.state_dict().items() if checkpoint.is_quantizer_key(k)},
    )
