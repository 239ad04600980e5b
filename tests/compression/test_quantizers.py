"""PAMS and DDTB as an NNI user meets them: any loop, any module, fused, unwrapped, stored, and rebuilt."""

from __future__ import annotations

import copy
import logging
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from nni.compression.pruning import L1NormPruner
from nni.compression.quantization import QATQuantizer
from torch import nn

import srq_nni
from srq_nni.errors import CheckpointError, OptionError, QuantizationError
from srq_nni.quantization.activation import DDTBActivation
from srq_nni.quantization.layers import activation_quantizers, quantized_convolutions
from tests.compression.doors import INT4, PAPER, Loop, batches, make, network, steps, trained


@pytest.mark.parametrize("method", ["pams", "ddtb"])
@pytest.mark.parametrize("stop", [1, 2, 3, 4, 5])
def test_a_stored_network_goes_on_as_if_it_had_not_stopped(photo_folders: Path, method: str, stop: int) -> None:
    data = batches(photo_folders)
    whole = trained(method, data, count=8).bound_model.state_dict()

    first = make(method, network(2), PAPER)
    optimizer = torch.optim.Adam(first.parameter_groups(lr=1e-3))
    steps(first.bound_model, optimizer, data, 1, stop, first)
    stored = pickle.loads(pickle.dumps((first.bound_model.state_dict(), optimizer.state_dict())))

    second = make(method, network(2, seed=1), PAPER)
    second.bound_model.load_state_dict(stored[0])
    optimizer = torch.optim.Adam(second.parameter_groups(lr=1e-3))
    optimizer.load_state_dict(stored[1])
    assert second.clock.count == stop
    steps(second.bound_model, optimizer, data, stop + 1, 8, second)
    result = second.bound_model.state_dict()
    assert result.keys() == whole.keys()
    assert not [key for key, value in whole.items() if not torch.equal(value, result[key])]


def test_ddtb_only_observes_before_its_bounds_start(photo_folders: Path) -> None:
    quantizer = make("ddtb", network(2), PAPER)
    model, before = quantizer.bound_model, copy.deepcopy(quantizer.bound_model.state_dict())
    optimizer = torch.optim.Adam(quantizer.parameter_groups(lr=1e-3, weight_decay=0.1))
    steps(model, optimizer, batches(photo_folders), 1, 2, quantizer)
    unchanged = [key for key in before if "statistic" not in key and "intensity" not in key]
    unchanged = [key for key in unchanged if not key.endswith(("_step", "channels"))]
    assert all(torch.equal(model.state_dict()[key], before[key]) for key in unchanged)
    assert model.training and not optimizer.state
    steps(model, optimizer, batches(photo_folders), 3, 5, quantizer)
    gates = [q for _, q in activation_quantizers(model) if isinstance(q, DDTBActivation) and q.gate is not None]
    assert len(gates) == 2 and all(q.gate_is_applied for q in gates)
    assert optimizer.param_groups[2]["name"] == "gates" and len(optimizer.param_groups[2]["params"]) == 2 * 4


@pytest.mark.parametrize("method", ["pams", "ddtb"])
@pytest.mark.parametrize(
    "entry",
    [{"wiring": "paper"}, {"wiring": "deploy"}, {"wiring": "official"}, {"wiring": "paper", "weight_range": "mse"}],
    ids=lambda entry: "-".join(entry.values()),
)
def test_unwrapped_rebuilt_and_live_networks_compute_the_same(
    photo_folders: Path, method: str, entry: dict[str, str]
) -> None:
    data = batches(photo_folders)
    quantizer = trained(method, data, [{**entry, **INT4}])
    model, x = quantizer.bound_model.eval(), data[0]["lq"]
    expected, config = model(x), quantizer.get_calibration_config()
    assert torch.equal(quantizer.quantized_network()(x), expected)
    assert torch.equal(copy.deepcopy(model)(x), expected)

    floats = {name: p.clone() for name, p in model.named_parameters() if name.endswith("_nni_wrapper.weight")}
    plain = quantizer.unwrap_model()
    assert list(plain.state_dict()) == list(network(2).state_dict())
    codes = plain.body[0].conv1.weight / config["body.0.conv1"]["weight"]["scale"]
    torch.testing.assert_close(codes, codes.round(), rtol=0, atol=1e-4)
    assert torch.equal(srq_nni.quantized_network(plain, pickle.loads(pickle.dumps(config)))(x), expected)
    assert torch.equal(pickle.loads(pickle.dumps(plain))(x), plain(x))

    quantizer.wrap_model()
    assert torch.equal(model(x), expected), "the weight that trains stays in floating point"
    assert all(torch.equal(value, dict(model.named_parameters())[name]) for name, value in floats.items())


@pytest.mark.parametrize("method", ["pams", "ddtb"])
def test_a_calibration_config_says_what_the_quantizers_do(photo_folders: Path, method: str) -> None:
    quantizer = (
        trained(method, batches(photo_folders), dynamic_ratio=0.0)
        if method == "ddtb"
        else trained(method, batches(photo_folders))
    )
    config = quantizer.get_calibration_config()
    assert set(config) == {f"body.{i}.conv{j}" for i in (0, 1) for j in (1, 2)}
    for module, targets in config.items():
        assert set(targets) == {"_input_0", "weight"}
        conv = quantizer.bound_model.get_submodule(module)
        for target, entry in targets.items():
            core = conv._nni_wrapper.get_submodule({"_input_0": "input_quantizer"}.get(target, "weight_quantizer"))
            grid = core.grid(conv._nni_wrapper.weight) if target == "weight" else core.grid()
            assert float(entry["scale"]) == pytest.approx(grid.scale, rel=1e-6)
            assert (entry["quant_min"], entry["quant_max"], entry["quant_bits"]) == (grid.minimum, grid.maximum, 4)
            assert float(entry["zero_point"]) == 0 and entry["quant_dtype"] == "int4"
            assert float(entry["tracked_max"]) == pytest.approx(grid.scale * grid.maximum, rel=1e-6)
            assert float(entry["tracked_min"]) == pytest.approx(grid.scale * grid.minimum, rel=1e-6)
            assert entry["quant_scheme"] == {"pams": "symmetric", "ddtb": "affine"}[method]


@pytest.mark.parametrize("method", ["pams", "ddtb"])
@pytest.mark.parametrize("entry", [{}, {"weight_range": "mse"}], ids=["learned", "mse"])
def test_a_calibration_config_goes_back_into_a_quantizer(
    photo_folders: Path, method: str, entry: dict[str, str]
) -> None:
    data, entries = batches(photo_folders), [{"wiring": "paper", **INT4, **entry}]
    first = trained(method, data, entries)
    config, weights = first.get_calibration_config(), first.bound_model.state_dict()
    second = make(method, network(2), entries)
    with pytest.raises(
        OptionError, match=r"^calibration_config: target 'weight' of 'body\.0\.conv1' has scale 0\.\d+ "
    ):
        second.update_calibration_config(config)
    assert not [key for key, value in second.bound_model.state_dict().items() if key.endswith("log_factor") and value]
    for key, value in second.bound_model.state_dict().items():
        if key.endswith((".weight", ".bias")):
            value.copy_(weights[key])
    second.update_calibration_config(config)
    x = data[0]["lq"]
    assert torch.equal(second.bound_model.eval()(x), first.bound_model.eval()(x))
    assert second.get_calibration_config().keys() == config.keys()
    optimizer = torch.optim.Adam(second.parameter_groups(lr=1e-3))
    steps(second.bound_model, optimizer, data, 1, 1, second)
    assert second.clock.phase == "final"


def test_mixed_bits_and_two_methods_in_one_network(photo_folders: Path) -> None:
    model = network(2)
    mixed = [{"op_names": ["body.0.conv1"], "quant_dtype": "int2"}, {"op_names_re": [r"body\.0\.conv2"], **INT4}]
    pams = make("pams", model, mixed, loop_evaluator(loop := Loop(batches(photo_folders), lr=1e-3)))
    ddtb = srq_nni.DDTBQuantizer.from_compressor(
        pams,
        [{"op_names_re": [r"body\.1\.conv"], "quant_dtype": "int3", "dynamic_ratio": 1.0}],
        calibration_iters=2,
        static_iters=2,
    )
    _, config = ddtb.compress(max_steps=8)
    assert len(loop.losses) == 8 and pams.clock.count == ddtb.clock.count == 8
    kinds = {name: (entry["_input_0"]["quantizer"], entry["weight"]["quant_bits"]) for name, entry in config.items()}
    assert kinds == {
        "body.0.conv1": ("pams", 2),
        "body.0.conv2": ("pams", 4),
        "body.1.conv1": ("ddtb", 3),
        "body.1.conv2": ("ddtb", 3),
    }
    x = batches(photo_folders)[0]["lq"]
    expected = model.eval()(x)
    rebuilt = ddtb.quantized_network()
    assert torch.equal(rebuilt(x), expected) and len(list(quantized_convolutions(rebuilt))) == 4
    assert set(ddtb.unwrap_model().state_dict()) == set(network(2).state_dict())


def loop_evaluator(loop: Loop) -> Any:
    return srq_nni.LoopEvaluator(loop)


def test_a_pruner_and_a_quantizer_share_wrappers(photo_folders: Path) -> None:
    model = network(2)
    config = [{"op_names": ["body.0.conv1"], "sparse_ratio": 0.5}]
    pruner = L1NormPruner(model, config, loop_evaluator(loop := Loop(batches(photo_folders), lr=1e-3)))
    pruner.compress()
    quantizer = srq_nni.PAMSQuantizer.from_compressor(pruner, PAPER, calibration_iters=2)
    quantizer.compress(max_steps=4)
    assert len(loop.losses) == 4
    with torch.no_grad():
        model.eval()(batches(photo_folders)[0]["lq"])
    weight = model.body[0].conv1.weight
    assert (weight.flatten(1).abs().sum(1) == 0).sum() == weight.shape[0] // 2
    assert weight.unique().numel() <= 15


class Skip(nn.Module):
    def forward(self, branch: torch.Tensor, skip: torch.Tensor) -> torch.Tensor:
        return branch + skip


class OwnNetwork(nn.Module):
    """A network nobody has a preset for: a sequence, a sum with two inputs, a linear layer, a shared activation."""

    def __init__(self) -> None:
        super().__init__()
        act = nn.PReLU()
        self.body = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), act, nn.Conv2d(6, 3, 3, padding=1), act)
        self.mix = nn.Linear(3, 3)
        self.skip = Skip()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.skip(self.mix(self.body(x).movedim(1, -1)).movedim(-1, 1), skip=x)


@pytest.mark.parametrize("method", ["pams", "ddtb"])
def test_a_network_without_a_preset(photo_folders: Path, method: str) -> None:
    data = [{"lq": sample["lq"], "gt": sample["lq"].flip(1)} for sample in batches(photo_folders)]
    entries = [
        {"op_types": ["Sequential"], "target_names": ["_input_", "_output_"], "quant_dtype": "int8"},
        {"op_types": ["Conv2d"], "exclude_op_names": ["body.2"], **INT4},
        {"op_names": ["body.2", "mix"], "target_settings": {"weight": INT4}},
        {"op_types": ["PReLU"], "target_names": ["_output_0"], "quant_dtype": "int8"},  # one module in two places
        {"op_names": ["skip"], "target_names": ["_input_skip"], "quant_dtype": "int8"},
    ]
    torch.manual_seed(0)
    quantizer = make(method, OwnNetwork(), entries)
    model = quantizer.bound_model
    losses = steps(model, torch.optim.Adam(quantizer.parameter_groups(lr=1e-2)), data, 1, 40, quantizer)
    assert losses[-1] < 0.8 * losses[0]
    x, expected = data[0]["lq"], model.eval()(data[0]["lq"])
    assert torch.equal(quantizer.quantized_network()(x), expected)
    config = quantizer.get_calibration_config()
    assert {target for targets in config.values() for target in targets} == {
        "_input_0", "_input_1", "_output_0", "weight"
    }  # fmt: skip
    plain = quantizer.unwrap_model()
    assert set(plain.state_dict()) == set(OwnNetwork().state_dict())
    assert torch.equal(srq_nni.quantized_network(plain, config)(x), expected)


@pytest.mark.parametrize("method", ["pams", "ddtb"])
def test_a_released_network_is_rebuilt_in_its_order_of_operations(photo_folders: Path, method: str) -> None:
    data = batches(photo_folders)
    quantizer = trained(method, data, [{"wiring": "official", **INT4}], profile="official")
    x, expected = data[0]["lq"], quantizer.bound_model.eval()(data[0]["lq"])
    assert torch.equal(quantizer.quantized_network()(x), expected)
    config = quantizer.get_calibration_config()
    rebuilt = srq_nni.quantized_network(quantizer.unwrap_model(), config)
    assert all(activation.released_order for _, activation in activation_quantizers(rebuilt))
    assert torch.equal(rebuilt(x), expected)


def test_batch_norm_folds_into_a_quantized_convolution(photo_folders: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 3, 3, padding=1))
    entry = {"op_names": ["0"], "target_names": ["weight", "_output_"], "fuse_names": [("0", "1", "2")], **INT4}
    quantizer = make("pams", model, [entry])
    with torch.no_grad():
        model.eval()(batches(photo_folders)[0]["lq"])
    folded = model[0].weight / quantizer.get_calibration_config()["0"]["weight"]["scale"]
    assert model[0].weight.unique().numel() <= 15 and folded.isfinite().all()
    assert set(quantizer.unwrap_model().state_dict()) == {
        "0.weight", "0.bias", "1.weight", "1.bias", "1.running_mean", "1.running_var", "1.num_batches_tracked",
        "3.weight", "3.bias",
    }  # fmt: skip


def test_a_part_that_is_called_by_itself_has_its_phases(photo_folders: Path) -> None:
    """As a LightningModule does it: nobody calls the module that the quantizer was given."""
    model, data = nn.ModuleDict({"net": network(2)}), batches(photo_folders)
    entries = [{"op_names_re": [r"net\.body\.\d\.conv[12]$"], **INT4}]
    part = make("ddtb", model, entries, dynamic_ratio=0.5)
    steps(model["net"], torch.optim.Adam(part.parameter_groups(lr=1e-3)), data, 1, 6, part)
    whole = trained("ddtb", data, [{**entries[0], "op_names_re": [r"body\.\d\.conv[12]$"]}], dynamic_ratio=0.5)
    own = {key.removeprefix("net."): value for key, value in model.state_dict().items()}
    assert not [key for key, value in whole.bound_model.state_dict().items() if not torch.equal(value, own[key])]


def test_no_cuda_cache_is_emptied_and_no_line_is_logged_twice(
    photo_folders: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: pytest.fail("the cache was emptied"))
    trained("pams", batches(photo_folders), count=2)
    assert logging.getLogger("nni").handlers and not logging.getLogger("nni").propagate


def test_a_plain_checkpoint_is_not_lost_in_a_wrapped_network() -> None:
    quantizer = make("pams", network(2), PAPER)
    with pytest.raises(CheckpointError) as error:
        quantizer.bound_model.load_state_dict(network(2).state_dict(), strict=False)
    assert str(error.value) == (
        "the state dict is one of the plain network, and NNI's wrappers would ignore its weights; "
        "load it before the quantizer is made, or give one that was saved after"
    )


def test_an_optimizer_without_the_bounds_is_an_error(photo_folders: Path) -> None:
    model = network(2)
    optimizer = torch.optim.Adam(model.parameters())
    quantizer = make("pams", model, PAPER)
    with pytest.raises(QuantizationError) as error:
        steps(model, optimizer, batches(photo_folders), 1, 9, quantizer)
    assert str(error.value) == (
        "the optimizer (Adam) trains the network but not the bounds of its quantizers; "
        "make it after the quantizer, with quantizer.parameter_groups(lr)"
    )


def test_another_quantizers_target_cannot_be_exported(photo_folders: Path) -> None:
    model = network(2)
    qat = QATQuantizer(model, [{"op_names": ["body.0.conv1"], "quant_dtype": "int8"}], loop_evaluator(Loop([])))
    quantizer = srq_nni.PAMSQuantizer.from_compressor(qat, [{"op_names": ["body.1.conv1"], **INT4}])
    with pytest.raises(OptionError, match=r"^target '\w+' of 'body\.0\.conv1' is quantized by a quantizer that "):
        quantizer.quantized_network()
