"""``srq train``, ``export``, ``bench`` and ``upscale`` after one another, as a user ships a network."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import srq_nni
from srq_nni.cli.main import main
from srq_nni.quantization.activation import DDTBActivation
from srq_nni.speedup import integer_simulator, lint_onnx
from srq_nni.speedup.byte_products import has_vnni, inexact_without_vnni
from srq_nni.speedup.engine_rules import get_rules
from tests.speedup.networks import photo_away_from_ties
from tests.sr_data import changed, float_checkpoint, train_options, write_yaml

onnx = pytest.importorskip("onnx")
pytestmark = pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step")
RESULT = "experiments/tiny/models/net_g_latest.pth"
ENGINES = ("openvino", "onnxruntime")
GATED = {"calibration_iters": 2, "static_iters": 1, "dynamic_ratio": 1.0}


def trained(method: str, bits: int, folder: Path, photos: Path) -> nn.Module:
    """Run ``srq train`` in the working folder and return the network of its checkpoint."""
    block = {"quantizer": method, "bits": bits, "wiring": "deploy", **(GATED if method == "ddtb" else {})}
    options = changed(train_options(photos, float_checkpoint(folder / "float.pth")), "quantization", block)
    main(["train", "-opt", write_yaml(folder / "train.yml", options)])
    network = srq_nni.load(RESULT)
    gates = [module.gate for module in network.modules() if isinstance(module, DDTBActivation)]
    assert all(gate is not None for gate in gates) and bool(gates) == (method == "ddtb")
    return network


def off_by(engine: str, network: nn.Module) -> tuple[float, float]:
    """Upscale a photo with ``srq upscale``; return the largest distance of its bytes from the simulator's values, and
    the share of bytes that are not those values rounded.

    A byte is at least half a level from what it was rounded from, if that was a tie.
    """
    simulator = integer_simulator(network, engine=engine)
    image = photo_away_from_ties(simulator)
    pixels = image[0].permute(1, 2, 0).mul(255).round().byte().numpy()
    Image.fromarray(pixels).save("small.png")
    main(["upscale", "small.png", "-m", f"{engine}.onnx", "-o", f"{engine}.png", "--engine", engine, "--threads", "1"])
    with torch.no_grad():
        expected = simulator(image)[0].permute(1, 2, 0).double().mul(255).clamp(0, 255).numpy()
    found = np.asarray(Image.open(f"{engine}.png")).astype(np.float64)
    assert found.shape == (40, 40, 3)
    return float(np.abs(found - expected).max()), float((found != expected.round()).mean())


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("method", ["pams", "ddtb"])
def test_what_was_trained_is_shipped(
    method: str, bits: int, photo_folders: Path, tmp_path: Path, work_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    network = trained(method, bits, tmp_path, photo_folders)
    for engine in ENGINES:
        pytest.importorskip(engine)
        main(["export", RESULT, "-o", f"{engine}.onnx", "--engine", engine])
        assert f"{engine}.onnx for {engine}" in capsys.readouterr().out
        lossy = inexact_without_vnni(onnx.load(f"{engine}.onnx"), get_rules(engine))
        largest, share = off_by(engine, network)
        if engine == "openvino" and lossy and has_vnni() is not True:
            assert bits == 8, f"{lossy} must be exact on every CPU"
        elif bits == 8 and engine == "onnxruntime":
            assert largest < 1.51 and share <= 0.05
        else:
            assert largest < 0.51

    main(["bench", RESULT, "--size", "24x24", "--repeats", "1", "--json", "bench.json"])
    rows = json.loads(Path("bench.json").read_text())["rows"]
    for engine in ENGINES:
        named = {row["precision"]: row for row in rows if row["engine"] == engine}
        assert {"float32", "bfloat16", "int8 + float32"} <= named.keys()
        row = named["int8 + float32"]
        assert row["difference"]["psnr"] > 40
        promised = lint_onnx(f"{engine}.onnx", engine).integer_convolutions
        assert row["integer_convolutions"] >= promised
        if method == "pams" or (engine, bits) == ("openvino", 4):  # gated codes of 8 bits fit no byte
            assert promised == 2


def test_the_file_for_tensorrt(photo_folders: Path, tmp_path: Path, work_folder: Path) -> None:
    trained("pams", 4, tmp_path, photo_folders)
    main(["export", RESULT, "-o", "tensorrt.onnx", "--engine", "tensorrt"])
    verdicts = {verdict.layer: verdict for verdict in lint_onnx("tensorrt.onnx", "tensorrt").verdicts if verdict.layer}
    assert verdicts.keys() == {"body.0.conv1", "body.0.conv2"}
    assert all(verdict.runs_in_integers for verdict in verdicts.values())
