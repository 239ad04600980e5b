"""What the released code builds, counted: quantizers, quantized convolutions, gates, sizes and learning rates."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from srq_nni.archs.quantized_arch import build_float, insert_quantizers
from srq_nni.compression.options import options_from
from srq_nni.compression.presets import PRESETS
from srq_nni.quantization.calibration import choose_dynamic_layers
from srq_nni.quantization.gate import Gate
from srq_nni.quantization.layers import activation_quantizers, bounds_of, quantized_convolutions
from tests.sr_data import NETWORK

TESTS = Path(__file__).resolve().parents[1]
CASES = {case["id"]: case for case in json.loads((TESTS / "data" / "methods.json").read_text())["cases"]}
ARCHS = {"edsr": "EDSR", "rdn": "RDN", "srresnet": "SRResNet"}
EDSR_NAMES = {  # of the released code -> of BasicSR
    "head.0": "conv_first",
    "body.16": "conv_after_body",
    "tail.0.0": "upsample.0",
    "tail.0.2": "upsample.2",
    "tail.1": "conv_last",
    "body.0.body.0": "body.0.conv1",
    "body.0.body.3": "body.0.conv2",
    "body.1.body.0": "body.1.conv1",
    "body.1.body.3": "body.1.conv2",
}


def expected(case_id: str) -> dict[str, Any]:
    """Return the recorded numbers of a case."""
    return CASES[case_id]["expected"]


@functools.cache
def published(arch: str, upscale: int = 4, method: str = "pams", wiring: str = "official") -> nn.Module:
    """Return a published network with quantizers, of full size but without memory for its values."""
    with torch.device("meta"):
        network = build_float({"type": arch, "num_in_ch": 3, "num_out_ch": 3, "upscale": upscale})
        return insert_quantizers(network, options_from({"quantizer": method, "bits": 4, "wiring": wiring})).eval()


def acts(model: nn.Module) -> list[str]:
    return [name for name, _ in activation_quantizers(model)]


def convolutions(model: nn.Module) -> list[str]:
    return [name for name, _ in quantized_convolutions(model)]


def float_convolutions(model: nn.Module) -> set[str]:
    every = {name for name, module in model.named_modules() if isinstance(module, nn.Conv2d)}
    return every - set(convolutions(model))


def channels_at_quantizers(model: nn.Module) -> dict[str, list[int]]:
    """Return, for each activation quantizer, the channels of what it was given in one forward pass."""
    seen: dict[str, list[int]] = {name: [] for name in acts(model)}
    hooks = [
        quantizer.register_forward_pre_hook(lambda _, args, name=name: seen[name].append(args[0].shape[1]))
        for name, quantizer in activation_quantizers(model)
    ]
    with torch.no_grad():
        model(torch.empty(1, 3, 8, 8, device="meta"))
    for hook in hooks:
        hook.remove()
    return seen


def test_pams_edsr_has_the_published_quantizers_without_doubled_names() -> None:
    want = expected("pams_edsr_structure")
    model = published("EDSR")
    names = acts(model)
    keys = list(model.state_dict())

    assert len(names) == want["n_act_quantizers"] == 48
    assert len(convolutions(model)) == want["n_quant_convs"] == 32
    assert sum(name.endswith(".alpha") for name, _ in model.named_parameters()) == want["n_alpha_params"]
    assert convolutions(model)[:4] == [EDSR_NAMES[name] for name in want["first_quant_convs"]]
    convs = [name for name in want["fp_convs"] if not name.endswith("_mean")]
    assert float_convolutions(model) == {EDSR_NAMES[name] for name in convs}
    # The mean shifts are convolutions in the released code and a subtraction in BasicSR.
    assert set(want["fp_convs"]) - set(convs) == {"sub_mean", "add_mean"}

    # The released student has two names for one alpha; ours has one name for each tensor, and the float names as such.
    assert want["both_present"] and want["duplicate_keys_example"] == ["body.0.quant_act2.alpha", "body.0.body.2.alpha"]
    assert len(list(model.parameters())) == len(list(model.named_parameters(remove_duplicate=False)))
    float_keys = list(build_float({**NETWORK, "num_feat": 64, "num_block": 16, "upscale": 4}).state_dict())
    assert [key for key in keys if "quantizer" not in key] == float_keys  # no map from teacher to student is needed
    assert want["teacher_to_student_key_map"] == "body.{i}.body.2.* -> body.{i}.body.3.*"
    mean_shifts, alpha_and_maximum, doubled = 2 * 2, 2 * 48, 2 * 16
    assert len(float_keys) + mean_shifts + alpha_and_maximum + doubled == want["n_state_dict_keys"] == 206
    # alpha, bit_width, mean and count of the running statistic; and the factor of each weight's step, which is ours
    assert len(keys) == len(float_keys) + 4 * 48 + 32


def test_edsr_upsampler_has_integer_strides_and_runs() -> None:
    want = expected("edsr_upsampler_bias_passed_as_stride")
    model = published("EDSR").get_submodule("upsample")
    convs = [module for module in model.modules() if isinstance(module, nn.Conv2d)]

    assert len(convs) == want["convs_with_bool_stride"] == 2
    assert all(conv.stride == (1, 1) and not any(isinstance(step, bool) for step in conv.stride) for conv in convs)
    assert all(conv.bias is not None for conv in convs)
    assert want["reference_forward"].startswith("TypeError")
    tiny = insert_quantizers(
        build_float({**NETWORK, "upscale": 4}), options_from({"quantizer": "pams", "bits": 4, "wiring": "official"})
    )
    assert tiny(torch.rand(1, 3, 6, 6)).shape == (1, 3, 24, 24)


def test_pams_rdn_has_the_published_quantizers_and_no_dead_ones() -> None:
    want = expected("pams_rdn_structure")
    model = published("RDN")
    seen = channels_at_quantizers(model)

    assert len(convolutions(model)) == want["n_quant_convs"] == 146
    assert len(seen) + want["n_unused_act_quantizers"] == want["n_act_quantizers"] == 161
    assert len(seen) == 145 and all(len(calls) == 1 for calls in seen.values())
    assert want["unused_example"] == "RDBs.0.convs.0.act"
    assert not [name for name in seen if name.startswith("RDBs.0.convs.0.")]

    assert want["first_conv_of_rdb_shares_act1"]  # one quantizer at the entry serves the first convolution and the skip
    assert "RDBs.0.input_quantizer" in seen and model.get_submodule("RDBs.0.convs.0.conv.0").input_quantizer is None
    assert not want["gff1_input_quantized"]
    assert "GFF.1.input_quantizer" not in seen and model.get_submodule("GFF.1").weight_quantizer is not None
    assert "GFF.1.input_quantizer" in acts(published("RDN", wiring="deploy"))
    assert not want["lff_plus_x_requantized"] and not [name for name in seen if "output" in name]
    assert float_convolutions(model) == {"SFENet1", "SFENet2", "UPNet.0", "UPNet.2", "UPNet.4"}


@pytest.mark.parametrize("arch", ["edsr", "rdn", "srresnet"])
def test_ddtb_counts_gates_and_percentiles(arch: str) -> None:
    want = expected("ddtb_structure_counts")
    model, preset = published(ARCHS[arch], method="ddtb"), PRESETS[ARCHS[arch]]
    names = acts(model)
    intensity = {name: float(position % 7) for position, name in enumerate(names)}

    assert len(names) == want[arch].get("acts_ever_run", want[arch]["acts"]) == {"edsr": 48, "rdn": 145}.get(arch, 32)
    assert len(convolutions(model)) == want[arch]["quant_convs"]
    assert len(choose_dynamic_layers(intensity, preset.dynamic_ratio)) == want[arch]["gated"]
    assert preset.percentile == want["M"][arch]
    assert want[arch]["acts"] - len(names) == (16 if arch == "rdn" else 0)


def test_srresnet_leaves_head_mid_and_tail_in_float() -> None:
    assert float_convolutions(published("SRResNet")) == {
        "conv_input",
        "conv_mid",
        "upscale.0",
        "upscale.3",
        "conv_output",
    }


@pytest.mark.parametrize("upscale", [4, 2])
@pytest.mark.parametrize("arch", ["edsr", "rdn", "srresnet"])
def test_model_size_arithmetic(arch: str, upscale: int) -> None:
    want = expected("model_size_arithmetic")[f"{arch}_x{upscale}"]
    model = published(ARCHS[arch], upscale, method="ddtb")
    bounds = {id(bound) for bound in bounds_of(model)}
    total = sum(p.numel() for p in model.parameters() if id(p) not in bounds)
    convs = [conv for _, conv in quantized_convolutions(model)]
    weights = sum(conv.weight.numel() for conv in convs)
    biases = sum(conv.bias.numel() for conv in convs if conv.bias is not None)

    assert (total, weights, biases) == (want["total_params"], want["quant_weights"], want["quant_biases"])
    for bits in (8, 4, 3, 2):
        with_biases = total - (weights + biases) * (1 - bits / 32)
        weights_alone = total - weights * (1 - bits / 32)
        assert round(with_biases / 1e6, 4) == want[f"authors_M_{bits}bit"]
        assert round(total / with_biases, 3) == want[f"authors_ratio_{bits}bit"]
        assert round(total / weights_alone, 3) == want[f"bias_fp_ratio_{bits}bit"]


@pytest.mark.parametrize("arch", ["edsr", "rdn", "srresnet"])
def test_model_size_arithmetic_of_gates(arch: str) -> None:
    want = expected("model_size_arithmetic")[f"{arch}_x4"]
    assert {key: want[key] for key in want if key.startswith("gate")}.items() <= expected("model_size_arithmetic")[
        f"{arch}_x2"
    ].items()
    channels = [calls[0] for calls in channels_at_quantizers(published(ARCHS[arch], method="ddtb")).values()]
    channels += [64] * (16 if arch == "rdn" else 0)  # the released code also builds gates for the 16 dead quantizers
    ternary, norms = [], []
    for count in channels:
        with torch.device("meta"):
            gate = Gate(count)
        ternary.append(gate.reduce.weight.numel() + gate.expand.weight.numel())
        norms.append(sum(p.numel() for p in gate.norm.parameters()))
    assert sum(ternary) == want["gate_2bit_weights_all_layers"]
    assert sum(norms) == want["gate_bn_params_all_layers"]
    assert (min(ternary), max(ternary)) == (
        want["gate_2bit_weights_min_per_layer"],
        want["gate_2bit_weights_max_per_layer"],
    )


def test_pams_lr_schedule_through_the_model(photo_folders: Path, tmp_path: Path) -> None:
    from srq_nni.models.quant_sr_model import QuantSRModel
    from tests.sr_data import float_checkpoint, train_options

    case = CASES["pams_lr_schedule"]
    inputs, want = case["inputs"], case["expected"]
    options = train_options(photo_folders, float_checkpoint(tmp_path / "float.pth")) | {"is_train": True, "dist": False}
    iterations = 800 * 20 // want["batch"]
    assert want["iters_per_epoch"].startswith(f"{iterations} ")
    milestones = [iterations * epoch for epoch in range(inputs["step"], inputs["epochs"], inputs["step"])]
    options["train"]["optim_q"] = {"lr": 1e-2}
    options["train"]["scheduler"] = {"type": "MultiStepLR", "milestones": milestones, "gamma": inputs["gamma"]}
    model = QuantSRModel(options)

    epochs = [1, 10, 11, 20, 21, 30]
    rates: dict[str, list[list[float]]] = {"first": [], "last": []}
    for iteration in range(1, inputs["epochs"] * iterations + 1):
        model.optimizer_g._opt_called = True  # spare the optimizer steps without the scheduler's warning
        model.update_learning_rate(iteration)
        epoch, place = divmod(iteration - 1, iterations)
        if epoch + 1 in epochs and place in (0, iterations - 1):
            rates["first" if place == 0 else "last"].append(model.get_current_learning_rate())
    for found in rates.values():
        assert [rate[0] for rate in found] == pytest.approx(want["lr_main_epoch_1_10_11_20_21_30"], rel=1e-12)
        assert [rate[1] for rate in found] == pytest.approx(want["lr_alpha_epoch_1_10_11_20_21_30"], rel=1e-12)
    for group in model.optimizer_g.param_groups:
        assert list(group["betas"]) == want["adam"]["betas"]
        assert (group["eps"], group["weight_decay"]) == (want["adam"]["eps"], want["adam"]["weight_decay"])
