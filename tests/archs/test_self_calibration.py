"""Networks that calibrate themselves: when they do, what their average computes, and what they leave in files."""

from __future__ import annotations

import copy
import logging
import pickle
from pathlib import Path

import pytest
import torch
from basicsr.archs import build_network
from torch import multiprocessing, nn

import srq_nni
from srq_nni.archs.aliases_arch import two_blocks
from srq_nni.archs.quantized_arch import QuantizedNetwork
from srq_nni.archs.self_calibration import BATCHES, STARTED
from srq_nni.errors import OptionError, SRQError
from srq_nni.quantization.layers import set_mode
from tests.archs.small_aliases import NAMES, block, bounds, photo, quantizers, train, train_in_a_process

# --- calibration


@pytest.mark.parametrize("name", NAMES)
def test_bounds_follow_the_first_training_batches_and_then_learn(name: str) -> None:
    net = build_network(block(name))
    reference = QuantizedNetwork(*two_blocks(block(name)))
    reference.load_state_dict(net.state_dict(), strict=False)
    set_mode(reference, "calibrate")
    train(net, 3)
    train(reference, 3)
    assert torch.equal(bounds(net), bounds(reference))
    counts = {int(quantizer.get_submodule("statistic").get_buffer("count")) for _, quantizer in quantizers(net)}
    assert counts == {3}

    statistics = {key: value.clone() for key, value in net.state_dict().items() if ".statistic." in key}
    before = bounds(net)
    train(net, 4, first=3)
    assert all(torch.equal(net.state_dict()[key], value) for key, value in statistics.items())
    assert 0 < (bounds(net) - before).abs().max() < 0.1, "a learning rate moves them, not a statistic"


def test_only_training_batches_count() -> None:
    net = build_network(block())
    net.eval()(photo())
    net.train()
    with torch.no_grad():
        net(photo())
    assert net.calibration.seen is None
    assert int(net.get_buffer(BATCHES)) == 0
    assert float(net.get_parameter(STARTED)) == 0


def test_uncalibrated_bounds_are_said_once(caplog: pytest.LogCaptureFixture) -> None:
    net = build_network(block()).eval()
    with caplog.at_level(logging.WARNING, "srq_nni"):
        net(photo())
        net(photo())
    assert [record.getMessage() for record in caplog.records if record.name.startswith("srq_nni")] == [
        "PAMS_EDSR runs with bounds that never saw an image; train it, or load a quantized checkpoint."
    ]


def test_files_show_calibration_only_while_it_runs() -> None:
    net = build_network(block())
    keys = set(QuantizedNetwork(*two_blocks(block())).state_dict())
    for step, extra in enumerate(({BATCHES, STARTED}, {BATCHES}, {BATCHES}, set(), set())):
        assert set(net.state_dict()) - keys == extra
        train(net, 1, first=step)


def test_copies_and_pickles_calibrate_for_themselves() -> None:
    net = build_network(block())
    train(net, 1)
    for twin in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        train(twin, 1)
        assert (twin.calibration.seen, net.calibration.seen) == (2, 1)


def test_copies_of_one_process_are_refused() -> None:
    net = build_network(block())
    net._is_replica = True  # as DataParallel marks them
    with pytest.raises(OptionError) as caught:
        net(photo())
    assert str(caught.value) == (
        "PAMS_EDSR runs on several GPUs in one process (DataParallel), whose copies lose calibration; "
        "start one process per GPU with --launcher pytorch"
    )


# --- the average


def average(net: nn.Module, ema: nn.Module, decay: float) -> None:
    """What ``BaseModel.model_ema`` does."""
    source = dict(net.named_parameters())
    for name, parameter in ema.named_parameters():
        parameter.data.mul_(decay).add_(source[name].data, alpha=1 - decay)


@pytest.mark.parametrize("name", NAMES)
def test_an_average_computes_with_the_bounds_since_calibration_began(name: str) -> None:
    decay, seen, shares = 0.99, [], []
    net, ema = build_network(block(name)), build_network(block(name)).eval()
    average(net, ema, 0)
    for step in range(5):
        train(net, 1, first=step)
        average(net, ema, decay)
        seen, shares = [*seen, bounds(net)], [decay * share for share in shares] + [1 - decay]
    wanted = sum(share * bound for share, bound in zip(shares, seen, strict=True)) / sum(shares)

    raw, used = bounds(ema), []
    handle = quantizers(ema)[-1][1].register_forward_hook(lambda *_: used.append(bounds(ema)))
    output = ema(photo())
    handle.remove()
    assert torch.allclose(used[0], wanted, rtol=1e-4, atol=1e-4)
    assert torch.equal(bounds(ema), raw), "the average itself goes on as it was"

    stored = build_network(block(name))
    stored.load_state_dict(ema.state_dict())
    assert STARTED in ema.state_dict()
    assert torch.equal(stored.eval()(photo()), output)
    train(stored, 1)
    assert float(stored.get_parameter(STARTED)) == 1
    assert torch.allclose(bounds(stored), wanted, atol=1e-2), "training starts from what the average computed with"


def test_an_average_is_whole_after_a_while() -> None:
    net, ema = build_network(block()), build_network(block())
    train(net, 4)
    for _ in range(300):
        average(net, ema, 0.95)
    assert set(ema.state_dict()) == set(QuantizedNetwork(*two_blocks(block())).state_dict())
    assert torch.allclose(bounds(ema), bounds(net), rtol=1e-4)


def test_the_state_is_restored_when_a_forward_fails() -> None:
    net, ema = build_network(block()), build_network(block()).eval()
    train(net, 1)
    average(net, ema, 0.9)
    raw = bounds(ema)
    with pytest.raises((RuntimeError, SRQError)):
        ema(torch.rand(1, 5, 8, 8))
    assert torch.equal(bounds(ema), raw)


# --- deployment


@pytest.mark.parametrize("name", ["PAMS_EDSR", "DDTB_EDSR"])
def test_a_trained_network_exports(name: str, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    net = build_network(block(name))
    train(net, 4)
    report = srq_nni.export_onnx(net.eval(), tmp_path / "model.onnx", engine="onnxruntime")
    assert (tmp_path / "model.onnx").is_file()
    assert "body.0.conv1" in str(report)


# --- several processes


@pytest.mark.processes
@pytest.mark.parametrize("name", ["PAMS_EDSR", "DDTB_EDSR"])
def test_two_processes_that_see_other_images_end_with_the_same_state(name: str, tmp_path: Path) -> None:
    multiprocessing.spawn(train_in_a_process, (name, str(tmp_path)), nprocs=2)
    one, two = (torch.load(tmp_path / f"{rank}.pth", weights_only=True) for rank in (0, 1))
    assert one.keys() == two.keys()
    assert not [key for key, value in one.items() if not torch.equal(value, two[key])]
