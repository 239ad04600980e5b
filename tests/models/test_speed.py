"""What a training step costs beyond BasicSR's: one teacher forward, no wait for the device; autocast, channels_last."""

from __future__ import annotations

import traceback
from pathlib import Path
from typing import Any

import pytest
import torch
from basicsr.models import build_model
from torch.utils._python_dispatch import TorchDispatchMode

from srq_nni.errors import OptionError
from srq_nni.models.preflight import check_options
from srq_nni.models.speed import Speed, speed_from
from srq_nni.quantization import fake_quantize
from srq_nni.quantization.layers import activation_quantizers
from tests.models.steps import DDTB, state, train
from tests.sr_data import Missing, changed, float_checkpoint, train_options

pytestmark = pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step")
WAITS = {"aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select", "aten::is_nonzero", "aten::item"}


class Waits(TorchDispatchMode):
    """Collects where the host reads a value of a tensor; on a GPU it would wait for the device there."""

    def __init__(self) -> None:
        super().__init__()
        self.places: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.name().split(".")[0] in WAITS:
            frames = traceback.extract_stack()[:-1]
            # Adam counts its steps in tensors on the CPU, wherever the parameters are.
            if not any("torch/optim" in frame.filename for frame in frames):
                ours = [frame for frame in frames if "site-packages/torch" not in frame.filename]
                self.places.append(f"{Path(ours[-1].filename).name}:{ours[-1].lineno} {ours[-1].line}")
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    ("block", "iterations"),
    [
        ({"quantizer": "pams", "bits": 4, "calibration_iters": 1}, (2, 3)),
        ({**DDTB, "calibration_iters": 1}, (3, 4, 5)),
        ({**DDTB, "calibration_iters": 1, "profile": "official"}, (3, 4, 5)),
    ],
)
def test_the_step_never_waits_for_the_device(
    options: dict[str, Any],
    batches: list[dict[str, torch.Tensor]],
    block: dict[str, Any],
    iterations: tuple[int, ...],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Off the CPU the limits of a clamp stay tensors; see its docstring.
    monkeypatch.setattr(fake_quantize, "_limits", lambda low, high: (low, high))
    model = build_model(changed(options, "quantization", block))
    train(model, batches, 1, iterations[0] - 1)
    for iteration in iterations:
        model.update_learning_rate(iteration, warmup_iter=-1)
        model.feed_data(batches[0])
        with Waits() as waits:
            model.optimize_parameters(iteration)
        assert waits.places == [], iteration
    with Waits() as waits:
        model.get_current_log()
    assert waits.places  # the test sees what it looks for


def test_calibration_waits_only_to_look_for_nan(
    options: dict[str, Any], batches: list[dict[str, torch.Tensor]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fake_quantize, "_limits", lambda low, high: (low, high))
    for block in ({"quantizer": "pams", "bits": 4, "calibration_iters": 3}, {**DDTB, "calibration_iters": 3}):
        model = build_model(changed(options, "quantization", block))
        train(model, batches, 1, 1)
        model.feed_data(batches[0])
        with Waits() as waits:
            model.optimize_parameters(2)
        quantizers = len(list(activation_quantizers(model.net_g)))
        assert len(waits.places) == quantizers
        assert all("isfinite(x).all()" in place for place in waits.places), waits.places


@pytest.mark.parametrize("block", [{"quantizer": "pams", "bits": 4, "calibration_iters": 1}, DDTB])
def test_one_forward_of_teacher_and_student_a_step(
    options: dict[str, Any], batches: list[dict[str, torch.Tensor]], block: dict[str, Any]
) -> None:
    model = build_model(changed(options, "quantization", block))
    calls = {"teacher": 0, "student": 0}
    for name, net in (("teacher", model.teacher), ("student", model.net_g)):

        def count(module: torch.nn.Module, args: Any, name: str = name) -> None:
            calls[name] += 1

        net.register_forward_pre_hook(count)
    train(model, batches, 1, 6)
    observed = block["calibration_iters"] if block["quantizer"] == "ddtb" else 0
    assert calls == {"teacher": 6 - observed, "student": 6}
    model.test()
    assert calls["teacher"] == 6 - observed


def test_bfloat16_runs_convolutions_and_leaves_bounds_and_losses(
    options: dict[str, Any], batches: list[dict[str, torch.Tensor]]
) -> None:
    for block in (options["quantization"], DDTB):
        options = changed(options, "quantization", block)
        plain, fast = build_model(options), build_model(changed(options, "train:amp", "bfloat16"))
        seen: dict[str, torch.dtype] = {}
        for name, net in (("student", fast.net_g), ("teacher", fast.teacher)):
            net.conv_after_body.register_forward_hook(
                lambda m, a, out, name=name, seen=seen: seen.update({name: out.dtype})
            )
        logs, fast_logs = train(plain, batches, 1, 6), train(fast, batches, 1, 6)
        assert seen == {"student": torch.bfloat16, "teacher": torch.bfloat16}
        assert fast.output.dtype == torch.float32 and not torch.is_autocast_enabled("cpu")
        assert {value.dtype for value in state(fast).values() if value.is_floating_point()} <= {
            torch.float32,
            torch.float64,  # running statistics
        }
        assert all(bound.grad is None or bound.grad.dtype == torch.float32 for bound in fast.net_g.parameters())
        for log, fast_log in zip(logs, fast_logs, strict=True):
            assert fast_log["l_pix"] == pytest.approx(log["l_pix"], rel=0.05)
        assert fast_logs != logs
        fast.feed_data(batches[0])
        fast.test()
        with torch.no_grad():
            assert torch.equal(fast.output, fast.net_g_ema(batches[0]["lq"]))  # in float32, as it is exported
        assert seen["student"] == torch.bfloat16


def test_autocast_ends_with_an_error_in_the_forward() -> None:
    class Failing(torch.nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            raise RuntimeError("no")

    net = Failing(2, 2)
    Speed(torch.bfloat16).install(net)
    with pytest.raises(RuntimeError, match="no"):
        net(torch.zeros(1, 2))
    assert not torch.is_autocast_enabled("cpu")


def test_channels_last_reaches_weights_and_images(
    options: dict[str, Any], batches: list[dict[str, torch.Tensor]]
) -> None:
    plain, fast = build_model(options), build_model(changed(options, "train:channels_last", True))
    formats: list[bool] = []
    for net in (fast.net_g, fast.teacher):
        assert net.conv_after_body.weight.is_contiguous(memory_format=torch.channels_last)
        net.conv_after_body.register_forward_hook(
            lambda m, args, out: formats.append(out.is_contiguous(memory_format=torch.channels_last))
        )
    logs, fast_logs = train(plain, batches, 1, 5), train(fast, batches, 1, 5)
    assert formats == [True] * 10
    for log, fast_log in zip(logs, fast_logs, strict=True):
        assert fast_log == pytest.approx(log, rel=1e-3)


@pytest.mark.parametrize(
    ("train_block", "message"),
    [
        (
            {"amp": "float16"},
            "train: amp: 'float16' is not allowed; give bfloat16 (float16 would need loss scaling) or delete the key; "
            "did you mean 'bfloat16'?",
        ),
        (
            {"amp": True},
            "train: amp: True is not allowed; give bfloat16 (float16 would need loss scaling) or delete the key",
        ),
        ({"channels_last": "yes"}, "train: channels_last: 'yes' is not allowed; give true or false"),
        ({"channels_last": 1}, "train: channels_last: 1 is not allowed; give true or false"),
    ],
)
def test_wrong_values_are_one_sentence(train_block: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError) as caught:
        speed_from(train_block)
    assert str(caught.value) == message


def test_preflight_knows_both_keys(photo_folders: Path, tmp_path: Path) -> None:
    options = train_options(photo_folders, float_checkpoint(tmp_path / "float.pth"))
    options["train"] |= {"amp": "bfloat16", "channels_last": True}
    check_options(options, is_train=True)
    with pytest.raises(OptionError, match="train: amp: 'half' is not allowed"):
        check_options(changed(options, "train:amp", "half"), is_train=True)
    stock = changed({**options, "model_type": "SRModel"}, "quantization", Missing)
    for key in ("amp", "channels_last"):
        given = changed(stock, f"train:{ {'amp': 'channels_last', 'channels_last': 'amp'}[key] }", Missing)
        with pytest.raises(OptionError) as caught:
            check_options(given, is_train=True)
        assert str(caught.value) == (
            f"train: {key}: the key is given but model_type is 'SRModel', which ignores it; "
            "set model_type: QuantSRModel, or delete the key"
        )
