"""Running statistics, the modes that use them, and what they decide."""

from __future__ import annotations

import copy
import json
import multiprocessing
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import distributed

from srq_nni.errors import QuantizationError
from srq_nni.quantization.activation import MODES, ActivationQuantizer, DDTBActivation, PAMSActivation
from srq_nni.quantization.calibration import (
    SUBSAMPLE,
    IntensityRecorder,
    RunningMean,
    choose_dynamic_layers,
    mean_sample_maximum,
    sampled_percentiles,
    subsample,
)
from srq_nni.quantization.gate import Gate
from srq_nni.quantization.percentile import percentile_bounds
from tests.quantization.cases import recorded_intensity

VALUES = st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=30)
QUANTIZERS = {
    "pams max": lambda: PAMSActivation(4, calibration="max"),
    "pams mae": lambda: PAMSActivation(4, calibration="mae"),
    "pams mse": lambda: PAMSActivation(4, calibration="mse"),
    "ddtb percentile": lambda: DDTBActivation(4, calibration="percentile"),
    "ddtb mae": lambda: DDTBActivation(4, calibration="mae"),
    "ddtb mse": lambda: DDTBActivation(4, calibration="mse"),
    "ddtb official": lambda: DDTBActivation(2, calibration="official"),
}
quantizers = pytest.mark.parametrize("make", QUANTIZERS.values(), ids=QUANTIZERS)


@given(VALUES)
def test_running_mean_is_the_mean(values: list[float]) -> None:
    running = RunningMean(2)
    for value in values:
        running.update(torch.tensor([value, -value], dtype=torch.float64))
    assert running.mean.tolist() == pytest.approx([np.mean(values), -np.mean(values)], rel=1e-9, abs=1e-9)
    assert running.count == len(values)


@given(VALUES, st.integers(0, 10_000))
def test_intensity_is_the_sum_of_the_population_variances(largest: list[float], seed: int) -> None:
    smallest = list(np.random.default_rng(seed).normal(size=len(largest)))
    expected = np.var(largest) + np.var(smallest)
    assert recorded_intensity(largest, smallest) == pytest.approx(expected, rel=1e-6, abs=1e-6)


def test_intensity_before_the_first_batch_is_zero() -> None:
    assert IntensityRecorder().intensity == 0.0


@quantizers
@pytest.mark.parametrize("stop", [1, 2])
def test_a_resumed_calibration_equals_an_uninterrupted_one(
    make: object, stop: int, photographs: torch.Tensor, tmp_path: Path
) -> None:
    batches = [photographs, photographs * 1.7 - 20, photographs[:2] - 128, photographs / 3]
    whole, first, second = (make() for _ in range(3))  # type: ignore[operator]
    for quantizer in (whole, first, second):
        quantizer.train().set_mode("calibrate")
    for batch in batches:
        whole(batch)
    for batch in batches[:stop]:
        first(batch)
    torch.save(first.state_dict(), tmp_path / "state.pth")
    second.load_state_dict(torch.load(tmp_path / "state.pth", weights_only=True))
    for batch in batches[stop:]:
        second(batch)
    for name, value in whole.state_dict().items():
        assert torch.equal(second.state_dict()[name], value), name


# Modes.


@quantizers
@pytest.mark.parametrize("training", [True, False])
def test_what_each_mode_returns_and_changes(make: object, training: bool, photographs: torch.Tensor) -> None:
    for mode in MODES:
        quantizer: ActivationQuantizer = make().train(training)  # type: ignore[operator]
        quantizer.set_mode(mode)
        before = copy.deepcopy(quantizer.state_dict())
        y = quantizer(photographs)
        changed = {key for key, value in quantizer.state_dict().items() if not torch.equal(value, before[key])}
        assert (y is photographs) == (mode in ("float", "observe"))
        moved = {key for key in changed if key in ("alpha", "lower", "upper")}
        assert bool(moved) == (mode == "calibrate" and training)
        assert ("statistic.count" in changed) == (mode == "observe" or (mode == "calibrate" and training))


def test_observing_alone_sets_the_bounds_only_when_asked(photographs: torch.Tensor) -> None:
    quantizer = PAMSActivation(4, calibration="max")
    quantizer.set_bounds_from_statistics()
    assert quantizer.alpha.item() == 10.0
    quantizer.set_mode("observe")
    quantizer(photographs), quantizer(photographs * 3)
    assert quantizer.alpha.item() == 10.0
    quantizer.set_bounds_from_statistics()
    expected = 2 * photographs.abs().amax((1, 2, 3)).mean()
    assert quantizer.alpha.item() == pytest.approx(expected.item(), rel=1e-6)


def test_an_unknown_mode_is_refused() -> None:
    with pytest.raises(QuantizationError) as error:
        PAMSActivation(4).set_mode("calibration")  # type: ignore[arg-type]
    assert str(error.value) == (
        "mode: 'calibration' is not known; give one of quantize, calibrate, observe, float; did you mean 'calibrate'?"
    )


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_mse_calibration_is_never_worse_than_max(bits: int, photographs: torch.Tensor) -> None:
    for image in (photographs[:1], photographs[1:2] - 100, torch.randn(1, 3, 20, 20) * 5):
        errors = {}
        for calibration in ("mse", "max"):
            quantizer = PAMSActivation(bits, calibration=calibration).train()
            quantizer.set_mode("calibrate")
            errors[calibration] = (quantizer(image) - image).square().mean().item()
        assert errors["mse"] <= errors["max"] * (1 + 1e-5)


@pytest.mark.parametrize("calibration", ["max", "mae", "mse"])
def test_a_black_activation_leaves_alpha_legal(calibration: str) -> None:
    quantizer = PAMSActivation(4, calibration=calibration).train()
    quantizer.set_mode("calibrate")
    assert torch.equal(quantizer(torch.zeros(2, 3, 4, 4)), torch.zeros(2, 3, 4, 4))
    assert quantizer.alpha > 0


# Percentiles.


@settings(max_examples=40)
@given(st.integers(1, 3000), st.floats(50.01, 100), st.integers(0, 10_000))
def test_percentiles_are_those_of_numpy(size: int, percentile: float, seed: int) -> None:
    x = torch.randn(size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    expected = np.percentile(x.numpy(), [100 - percentile, percentile])
    assert torch.stack(percentile_bounds(x, percentile)).numpy() == pytest.approx(expected, rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("size", [1, 2, 100, 101, SUBSAMPLE, SUBSAMPLE + 1, 3 * SUBSAMPLE + 7])
@pytest.mark.parametrize("percentile", [95.0, 99.0, 100.0])
def test_large_tensors_are_sampled_regularly(size: int, percentile: float) -> None:
    x = torch.randn(size)
    stride = -(-size // SUBSAMPLE)
    kept = subsample(x)
    assert torch.equal(kept, x[::stride]) and kept.numel() <= SUBSAMPLE
    expected = np.percentile(x[::stride].double().numpy(), [100 - percentile, percentile])
    assert sampled_percentiles(x, percentile).numpy() == pytest.approx(expected, rel=1e-5, abs=1e-6)
    if percentile < 100:  # the sample stands for the whole
        whole = np.percentile(x.double().numpy(), [100 - percentile, percentile])
        assert sampled_percentiles(x, percentile).numpy() == pytest.approx(whole, abs=0.02)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_percentiles_of_half_precision_are_interpolated_in_float32(dtype: torch.dtype) -> None:
    x = torch.randn(2, 3, 11, 7).to(dtype)
    lower, upper = percentile_bounds(x, 99.0)
    assert lower.dtype == torch.float32
    expected = np.percentile(x.double().numpy(), [1, 99])
    assert [lower.item(), upper.item()] == pytest.approx(expected, rel=1e-6)


# What is refused.


@quantizers
@pytest.mark.parametrize("mode", ["observe", "calibrate"])
def test_a_statistic_of_something_broken_is_refused(make: object, mode: str) -> None:
    quantizer: ActivationQuantizer = make().train()  # type: ignore[operator]
    quantizer.set_mode(mode)  # type: ignore[arg-type]
    before = copy.deepcopy(quantizer.state_dict())
    for value in (float("nan"), float("inf"), -float("inf")):
        x = torch.zeros(2, 3, 4, 4)
        x[1, 2, 3, 3] = value
        with pytest.raises(QuantizationError) as error:
            quantizer(x)
        assert str(error.value) == (
            "calibration met NaN or infinity in an activation; check the network's weights and the input images"
        )
    with pytest.raises(QuantizationError) as error:
        quantizer(torch.zeros(0, 3, 4, 4))
    assert str(error.value) == "an empty activation cannot be calibrated on; give images with at least one pixel"
    assert all(torch.equal(value, before[key]) for key, value in quantizer.state_dict().items())


# Which layers get a gate.


@given(st.lists(st.floats(0, 1e6), max_size=30), st.floats(0, 1))
def test_the_most_intense_layers_are_chosen(values: list[float], ratio: float) -> None:
    intensity = {f"layer{index}": value for index, value in enumerate(values)}
    chosen = choose_dynamic_layers(intensity, ratio)
    assert len(chosen) == len(set(chosen)) == int(len(values) * ratio)
    left = [intensity[name] for name in intensity if name not in chosen]
    assert [intensity[name] for name in chosen] == sorted(values, reverse=True)[: len(chosen)]
    assert not left or not chosen or max(left) <= min(intensity[name] for name in chosen)


def test_layers_of_equal_intensity_keep_their_order() -> None:
    assert choose_dynamic_layers({"b": 1.0, "a": 1.0, "c": 2.0}, 1.0) == ["c", "b", "a"]


@pytest.mark.parametrize(("layers", "ratio", "count"), [(48, 0.3, 14), (145, 0.5, 72), (32, 0.1, 3)])
def test_the_published_numbers_of_gates(layers: int, ratio: float, count: int) -> None:
    assert len(choose_dynamic_layers({str(index): float(index) for index in range(layers)}, ratio)) == count


@pytest.mark.parametrize("ratio", [-0.1, 1.5, float("nan")])
def test_another_ratio_is_refused(ratio: float) -> None:
    with pytest.raises(QuantizationError) as error:
        choose_dynamic_layers({"a": 1.0}, ratio)
    assert str(error.value) == f"dynamic ratio: {ratio!r} is not allowed; give a number from 0 to 1"


# Two processes.


def run_rank(rank: int, folder: Path) -> None:
    distributed.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    mean, intensity = RunningMean(2), IntensityRecorder()
    pams, ddtb = PAMSActivation(4, calibration="max"), DDTBActivation(4, percentile=100.0)
    for batch in range(3):
        mean.update(torch.tensor([batch + 10.0 * rank, -rank]))
        intensity.update(torch.tensor(-batch - 1.0 - rank), torch.tensor(batch * (2.0 - rank)))
        x = torch.linspace(-1 - rank, 2 + rank, 24).view(2, 3, 2, 2) * (batch + 1)
        for quantizer in (pams, ddtb):
            quantizer.train().set_mode("calibrate")
            quantizer(x)
    bounds = [bound.item() for quantizer in (pams, ddtb) for bound in quantizer.bounds()]
    found = {"mean": mean.mean.tolist(), "intensity": intensity.intensity, "bounds": bounds}
    (folder / f"{rank}.json").write_text(json.dumps(found))
    distributed.destroy_process_group()


@pytest.mark.processes
def test_two_ranks_agree_on_their_statistics(tmp_path: Path) -> None:
    # Forked, not spawned: the imports of a fresh process would take most of the time.
    context = multiprocessing.get_context("fork")
    ranks = [context.Process(target=run_rank, args=(rank, tmp_path), daemon=True) for rank in range(2)]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join(timeout=60)
        rank.kill()
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2))
    assert first == second
    assert first["mean"] == pytest.approx([1 + 5.0, -0.5])
    # Extremes over both ranks: smallest -2, -3, -4 and largest 0, 2, 4.
    assert first["intensity"] == pytest.approx(np.var([0, 2, 4]) + np.var([-2, -3, -4]))
    alphas = [[np.linspace(-1 - rank, 2 + rank, 24).reshape(2, 12)] for rank in range(2)]
    alpha = np.mean([np.abs(values[0]).max(1).mean() for values in alphas]) * np.mean([1, 2, 3])
    assert first["bounds"] == pytest.approx([alpha, -1.5 * 2, 2.5 * 2], rel=1e-5)


def test_gate_logits_of_an_earlier_batch_are_forgotten() -> None:
    quantizer = DDTBActivation(4)
    quantizer.add_gate(Gate(3))
    quantizer(torch.rand(2, 3, 4, 4))
    assert quantizer.gate_logits is not None
    quantizer.set_mode("float")
    quantizer(torch.rand(2, 3, 4, 4))
    assert quantizer.gate_logits is None


@pytest.mark.parametrize("shape", [(), (5,), (2, 3), (2, 3, 4, 4)])
def test_sample_maximum_of_any_shape(shape: tuple[int, ...]) -> None:
    x = torch.randn(shape)
    expected = x.abs().reshape(shape[0] if shape else 1, -1).amax(1).mean()
    assert torch.equal(mean_sample_maximum(x), expected.reshape(1))
