"""The script that takes a quantized network's loss apart."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from tests.sr_data import REPOSITORY

FOLDER = REPOSITORY / "benchmarks"
sys.path[:0] = [str(FOLDER / "accuracy"), str(FOLDER)]

import cells  # noqa: E402
import float_networks  # noqa: E402
import images  # noqa: E402
import loss_parts  # noqa: E402
import measure  # noqa: E402
import measuring  # noqa: E402
import results  # noqa: E402

from srq_nni import packed  # noqa: E402
from srq_nni.quantization.layers import quantized_convolutions  # noqa: E402

PACKED = REPOSITORY / "weights" / "EDSR_x2_f32b5_ddtb_2bit.safetensors"
CELL = cells.Cell("ptq", 2, recipe="least error", network="EDSR-32x5-shipped")


def test_each_state_quantizes_what_it_says(photo_folders: Path) -> None:
    model = packed.load(PACKED).eval()
    pairs = images.read_pairs(photo_folders / "HR", photo_folders / "LR_bicubic" / "X2", 2)[:1]
    low = images.image_tensor(pairs[0].low)
    with torch.no_grad():
        outputs = {state: model(low) for state in loss_parts.states(model)}
        quantizers = [layer.weight_quantizer for _, layer in quantized_convolutions(model)]
        assert not any(quantizer.enabled for quantizer in quantizers)
    # A packed network holds its weights on their grids, so turning their quantizers off changes nothing.
    assert torch.equal(outputs["weights"], outputs["neither"])
    assert (outputs["quantized"] - outputs["weights"]).abs().max() > 1 / 255


def test_the_parts_add_up_to_the_loss(
    tmp_path: Path, photo_folders: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pairs = images.read_pairs(photo_folders / "HR", photo_folders / "LR_bicubic" / "X2", 2)[:2]
    table, page = tmp_path / "t.csv", tmp_path / "page.md"
    monkeypatch.setattr(loss_parts, "benchmark_sets", lambda *_: {"Set5": pairs})
    monkeypatch.setattr(loss_parts, "validation_images", lambda *_: pairs)
    monkeypatch.setattr(measuring, "training_images", lambda *_: pairs)
    monkeypatch.setattr(measuring, "CALIBRATION_BATCHES", 2)
    monkeypatch.setattr(loss_parts, "select", lambda _: [CELL])
    arguments = ["--only", "least", f"--work={tmp_path}", f"--table={table}", f"--output={page}", f"--data={tmp_path}"]
    with pytest.raises(SystemExit):
        loss_parts.main(arguments)
    assert "--only: 'least' matches no quantized network of ours that is finished in" in capsys.readouterr().err
    assert not page.exists()

    results.add_row(
        table, results.Row(CELL.name, CELL.network, "ptq", "paper", CELL.recipe, 2, 1, 0, *[0.0] * 10, *"cdm")
    )
    assert loss_parts.main(arguments) == 0
    line = next(line for line in page.read_text().splitlines() if line.startswith(f"| {CELL.name} | Set5 |"))
    start, quantized, lost, *parts = (float(value) for value in line.split("|")[3:-1])
    described = cells.NETWORKS[CELL.network]
    model = float_networks.float_network(described, described.weights_in(tmp_path))
    with measure.evaluating(model):
        assert start == pytest.approx(measure.score(measure.network(model), pairs, 2).psnr, abs=1e-4)
    assert lost == pytest.approx(start - quantized, abs=2e-4) and lost > 0.2
    assert lost == pytest.approx(sum(parts), abs=3e-4)
    assert parts[0] > 0.05 and parts[1] > 0.05, "2 bits cost something on both sides"
    assert parts[2] == pytest.approx(0, abs=1e-4), "nothing was trained"
