"""What a BasicSR user changes in an option file of his own, counted, and the same from the command line alone.

``stock_EDSR_Mx2.yml`` is a reconstruction of BasicSR's file: the distribution of BasicSR 1.4.2 holds no option files.
"""

from __future__ import annotations

import difflib
from pathlib import Path

import pytest
import torch

from tests.configs.runs import read_options, run, small_training, write_float_weights

# DDTB's first iterations only observe, so the first scheduler step comes before the first optimizer step.
pytestmark = pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step")
STOCK = Path(__file__).with_name("stock_EDSR_Mx2.yml")
QUANTIZED = Path("experiments") / "EDSR_Mx2_f64b16_DIV2K_300k_B16G1" / "models" / "net_g_latest.pth"
CHANGES = {
    "model_type: SRModel\n": (
        "model_type: QuantSRModel\nquantization:\n  quantizer: {quantizer}\n  bits: 4\n"  # all that is necessary
    ),
    "  pretrain_network_g: ~\n": "  pretrain_network_g: EDSR_Mx2.pth\n  pretrain_network_t: EDSR_Mx2.pth\n",
    "  # losses\n": "  # losses\n  skt_opt: {{type: SKTLoss, loss_weight: 3.92}}\n",
}


def changed_file(quantizer: str) -> str:
    text = STOCK.read_text()
    for before, after in CHANGES.items():
        assert text.count(before) == 1
        text = text.replace(before, after.format(quantizer=quantizer))
    return text


def overrides() -> list[str]:
    return [*small_training(read_options(STOCK)), "path:pretrain_network_g=EDSR_Mx2.pth"]


def trained() -> dict[str, dict[str, torch.Tensor]]:
    state: dict[str, dict[str, torch.Tensor]] = torch.load(QUANTIZED, weights_only=True)
    for part in ("params", "params_ema"):
        assert int(state[part]["body.0.conv1.input_quantizer.bit_width"]) == 4
        assert all(torch.isfinite(value).all() for value in state[part].values())
    return state


@pytest.mark.parametrize("quantizer", ["pams", "ddtb"])
def test_the_diff_is_under_15_lines_and_trains(quantizer: str, run_folder: Path) -> None:
    text = changed_file(quantizer)
    diff = list(difflib.unified_diff(STOCK.read_text().splitlines(), text.splitlines(), n=0, lineterm=""))
    assert len(diff) < 15, "with its headers"
    assert len([line for line in diff if line[0] in "+-" and line[:3] not in ("+++", "---")]) == 9

    Path("mine.yml").write_text(text)
    short = ["quantization:calibration_iters=1", *(["quantization:static_iters=1"] if quantizer == "ddtb" else [])]
    write_float_weights(read_options("mine.yml"), overrides())
    run("train", "mine.yml", [*overrides(), *short, "train:total_iter=3"])
    assert trained()["srq"]["quantization"]["quantizer"] == quantizer


def test_a_stock_file_trains_with_four_bits_from_the_command_line(run_folder: Path) -> None:
    write_float_weights(read_options(STOCK), overrides())
    run("train", STOCK, [*overrides(), "model_type=QuantSRModel", "quantization={quantizer: pams, bits: 4}"])
    assert trained()["srq"]["quantization"]["quantizer"] == "pams"


@pytest.mark.parametrize("quantizer", ["PAMS", "DDTB"])
def test_a_stock_file_trains_a_quantized_network_by_its_name(quantizer: str, run_folder: Path) -> None:
    write_float_weights(read_options(STOCK), overrides())
    by_name = [f"network_g:type={quantizer}_EDSR", "network_g:bits=4"]
    run("train", STOCK, [*overrides(), *by_name])
    assert trained()["srq"]["quantization"]["quantizer"] == quantizer.lower()
    run("train", STOCK, [*overrides(), *by_name, "train:total_iter=4"], "--auto_resume")
    trained()


def test_the_stock_file_itself_trains(run_folder: Path) -> None:
    write_float_weights(read_options(STOCK), overrides())
    run("train", STOCK, overrides())
    assert not [key for key in torch.load(QUANTIZED, weights_only=True)["params"] if "quantizer" in key]
