"""The accuracy benchmark on a cell of a few iterations: it resumes bit for bit, and what it measures is right."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import srq_nni
from tests.benchmarks.test_accuracy_tables import row
from tests.sr_data import REPOSITORY, SHARED

FOLDER = REPOSITORY / "benchmarks"
sys.path[:0] = [str(FOLDER / "accuracy"), str(FOLDER)]

import cells  # noqa: E402
import contenders  # noqa: E402
import float_networks  # noqa: E402
import images  # noqa: E402
import measure  # noqa: E402
import measuring  # noqa: E402
import nni_quantizers  # noqa: E402
import pipeline  # noqa: E402
import publish  # noqa: E402
import recipes  # noqa: E402
import results  # noqa: E402
import run  # noqa: E402

OWN = dataclasses.replace(cells.NETWORKS["EDSR-32x5"], weights="EDSR_x2_f32b5.pth")
WEIGHTS = REPOSITORY / "weights" / OWN.weights
SHORT = dataclasses.replace(cells.PROTOCOL, iterations=5, batch=2, patch=16, calibration_iters=2, static_iters=1)
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason="needs shared/data, which is no part of the repository")


@pytest.fixture
def pairs(photo_folders: Path) -> list[images.Pair]:
    return images.read_pairs(photo_folders / "HR", photo_folders / "LR_bicubic" / "X2", 2)


@pytest.fixture
def frequent(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for module in (pipeline, nni_quantizers):
        monkeypatch.setattr(module, "CHECKPOINT_FREQUENCY", 2)
        monkeypatch.setattr(module, "CURVE_FREQUENCY", 3)
    yield


class Interrupted(Exception):  # noqa: N818 - no error: it stands for Ctrl-C
    pass


class Until(images.Patches):
    """Patches that break off before an iteration."""

    stop = 0

    def batch(self, iteration: int) -> images.Batch:
        if iteration == self.stop:
            raise Interrupted
        return super().batch(iteration)


def trained(cell: cells.Cell, folder: Path, pairs: list[images.Pair], stop: int = 0) -> tuple[Any, pipeline.Progress]:
    patches, crops = Until(pairs, 2, SHORT.patch, SHORT.batch, cell.seed), images.centres(pairs[:2], 2, 16)
    patches.stop = stop
    if cell.method in nni_quantizers.QUANTIZERS:
        return nni_quantizers.train(cell, OWN, WEIGHTS, folder, patches, crops, SHORT)
    opt = pipeline.options(cell, OWN, WEIGHTS, folder, SHORT)
    return pipeline.train(cell, opt, folder, patches, crops, OWN.scale)


@pytest.mark.parametrize(
    "cell",
    [
        cells.Cell("ddtb", 4, "official", "official", iterations=5),
        cells.Cell("ddtb", 2, recipe=recipes.BEST[2], iterations=5),
        cells.Cell("pams", 2, iterations=5),
        cells.Cell("qat", 4, recipe="nni", iterations=5),
    ],
    ids=lambda cell: cell.name,
)
def test_a_run_that_was_cut_off_ends_as_one_that_was_not(
    cell: cells.Cell, tmp_path: Path, pairs: list[images.Pair], frequent: None
) -> None:
    whole, progress = trained(cell, tmp_path / "whole", pairs)
    with pytest.raises(Interrupted):
        trained(cell, tmp_path / "cut", pairs, stop=4)
    resumed, again = trained(cell, tmp_path / "cut", pairs)
    states = whole.state_dict(), resumed.state_dict()
    assert [key for key in states[0] if not torch.equal(states[0][key], states[1][key])] == []
    assert progress.iteration == again.iteration == 5
    assert [point[:2] for point in map(tuple, progress.curve)] == [point[:2] for point in map(tuple, again.curve)]
    float_weights = torch.load(WEIGHTS, weights_only=True)["params"]
    assert not torch.equal(float_weights["conv_first.weight"], states[0]["conv_first.weight"])


@pytest.mark.parametrize("method", ["ddtb", "ptq"])
def test_equalized_weights_are_made_once_and_compute_what_the_given_ones_do(
    method: str, tmp_path: Path, pairs: list[images.Pair], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(recipes.RECIPES, "few", recipes.Recipe(recipes.LEARNED, equalized=2))
    asked: list[dict[str, Any]] = []

    def equalize(*args: Any, **options: Any) -> Any:
        asked.append({"block": args[1], "batches": len(args[2]), **options})
        return srq_nni.equalize(*args, **options)

    monkeypatch.setattr(measuring, "equalize", equalize)
    cell, patches = cells.Cell(method, 8, recipe="few"), images.Patches(pairs, 2, 16, 2, 1)

    made = [measuring.equalized_weights(cell, OWN, WEIGHTS, tmp_path, patches) for _ in range(2)]

    quantization = {"bits": 8, "quantizer": "ddtb", "wiring": "paper", **recipes.LEARNED}
    assert asked == [{"block": quantization, "batches": 2, "untrained": method == "ptq"}]
    assert made == [tmp_path / "equalized.pth"] * 2
    given, equalized = (float_networks.float_network(OWN, file) for file in (WEIGHTS, made[0]))
    with torch.no_grad():
        low = patches.batch(3)["lq"]
        assert torch.allclose(given(low), equalized(low), atol=1e-5)
    assert not torch.allclose(given.conv_first.weight, equalized.conv_first.weight)


def test_patches_follow_from_seed_and_iteration(pairs: list[images.Pair]) -> None:
    one, other = (images.Patches(pairs, 2, 16, 3, seed) for seed in (1, 2))
    assert torch.equal(one.batch(7)["lq"], images.Patches(pairs, 2, 16, 3, 1).batch(7)["lq"])
    assert not torch.equal(one.batch(7)["lq"], one.batch(8)["lq"])
    assert not torch.equal(one.batch(7)["lq"], other.batch(7)["lq"])
    epoch = [one._image(position) for position in range(len(pairs))]
    assert sorted(epoch) == list(range(len(pairs)))  # every image once an epoch


def test_low_and_high_patches_belong_together() -> None:
    rows, columns = np.mgrid[0:20, 0:30].astype(np.uint8)
    low = np.stack([rows, columns, rows], axis=-1)
    patches = images.Patches([images.Pair(low, low.repeat(2, 0).repeat(2, 1))], 2, 8, 4, 1)
    seen = [patches.batch(iteration) for iteration in range(1, 7)]
    for batch in seen:
        assert torch.equal(batch["gt"][..., ::2, ::2], batch["lq"])
    red = [image[0] for batch in seen for image in batch["lq"]]  # the number of the row
    slopes = {(float((r[1, 0] - r[0, 0]).sign()), float((r[0, 1] - r[0, 0]).sign())) for r in red}
    assert slopes == {(1, 0), (-1, 0), (0, 1), (0, -1)}  # rows rise or fall, down or, transposed, to the right


def test_cost_of_the_published_network() -> None:
    """EDSR-baseline x2 at 4 bits, wiring official and paper: the numbers of methods.md, section 7."""
    from srq_nni.archs.quantized_arch import QuantizedNetwork

    network = {**cells.NETWORKS["EDSR-64x8"].block, "num_block": 16}
    for wiring, bops in (("official", 65.1), ("paper", 49.9)):
        model = QuantizedNetwork(network, {"quantizer": "ddtb", "bits": 4, "wiring": wiring}).eval()
        price = measure.cost(model, 2, measure.own_widths(model))
        assert price.bops == pytest.approx(bops, abs=0.06)
        assert price.size == pytest.approx(0.336, abs=6e-4)
        assert price.coverage == pytest.approx(0.859 if wiring == "paper" else 0.859 / 2, abs=1e-3)
        assert price.body_kb == pytest.approx(32 * 36864 * 4 / 8 / 1e3)


def test_a_shipped_network_is_packed_with_its_card(
    tmp_path: Path, pairs: list[images.Pair], monkeypatch: pytest.MonkeyPatch
) -> None:
    cell = cells.Cell("ddtb", 4, recipe="recommended", network="EDSR-32x5-shipped", iterations=5)
    assert cells.NETWORKS[cell.network].weights_in(tmp_path) == WEIGHTS
    model, _ = trained(cell, tmp_path / "work" / cell.name, pairs)
    with measure.evaluating(model):
        psnr = measure.score(measure.network(model), pairs, 2).psnr
    base = {"network": cell.network, "set5_psnr": psnr, "coverage": 0.646, "seed": 1}
    quantized = row(cell=cell.name, method="ddtb", bits=4, wiring="paper", recipe="recommended", iterations=5, **base)
    results.add_row(tmp_path / "t.csv", quantized, row(cell=cells.Cell("float", 32, network=cell.network).name, **base))
    monkeypatch.setattr(publish, "queue", lambda: [cell])
    monkeypatch.setattr(publish, "read_pairs", lambda *_: pairs)
    arguments = [
        f"--{name}={tmp_path / place}"
        for name, place in (("work", "work"), ("table", "t.csv"), ("output", "."), ("data", "."))
    ]
    assert publish.main(arguments) == 0
    file = tmp_path / "EDSR_x2_f32b5_ddtb_4bit.safetensors"
    assert 100_000 < file.stat().st_size < 300_000
    text = file.with_suffix(".md").read_text()
    for part in ("DDTB, 4 bits", "64.6%", "5 iterations of 16 LR patches of 32x32", f"{psnr:.3f} / ", "Apache-2.0"):
        assert part in text

    results.add_row(tmp_path / "t.csv", dataclasses.replace(quantized, set5_psnr=psnr + 0.01))
    with pytest.raises(SystemExit, match="the packed network has"):
        publish.main(arguments)
    assert not file.exists()


def test_of_two_runs_for_one_file_that_which_is_best_on_val_is_shipped() -> None:
    shipped = [
        cells.Cell("ddtb", 2, recipe=name, network="EDSR-32x5-shipped")
        for name in ("recommended, lr 1e-3", recipes.DISTILLED[2])
    ]
    other = cells.Cell("ddtb", 2, recipe=recipes.DISTILLED[2])
    rows = {
        cell.name: row(cell=cell.name, val_psnr=psnr)
        for cell, psnr in zip([*shipped, other], (34.5, 34.4, 35.0), strict=True)
    }
    assert publish.chosen(rows) == shipped[:1]


def test_the_queue_has_no_cell_twice_and_every_recipe() -> None:
    names = [cell.name for cell in contenders.queue()]
    assert len(names) == len(set(names))
    for cell in contenders.queue():
        assert cell.recipe in recipes.RECIPES or cell.method in (*nni_quantizers.QUANTIZERS, "float", "bicubic")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--jobs", "0"], "--jobs: 0 is not allowed; give at least 1"),
        (["--only", "nothing"], "--only: 'nothing' matches no cell; --list shows all names"),
        (["--only", "("], "--only: '(' is not a pattern"),
        (["--cell", "EDSR"], "--cell: 'EDSR' is not in the queue; --list shows all names"),
        (["--data", "/nowhere"], "--data: '/nowhere' is no folder"),
    ],
)
def test_wrong_arguments(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = [] if "--data" in arguments else ["--data", str(tmp_path)]
    with pytest.raises(SystemExit) as caught:
        run.main([*arguments, *data, "--table", str(tmp_path / "table.csv")])
    assert message in capsys.readouterr().err + str(caught.value)


def test_the_list_shows_what_is_done(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = tmp_path / "table.csv"
    results.add_row(table, row(cell="EDSR-32x5-float"))
    assert run.main(["--list", "--table", str(table)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "done EDSR-32x5-float" in lines and "     EDSR-32x5-bicubic" in lines


@needs_shared
@pytest.mark.parametrize("name", ["EDSR-32x5", "SRResNet-64x8", "RDN-10x3"])
def test_set5_of_the_float_network_and_of_bicubic(name: str, tmp_path: Path) -> None:
    network = cells.NETWORKS[name]
    scale, folder = network.scale, SHARED / "benchmark/Set5"
    pairs = images.read_pairs(folder / "HR", folder / f"LR_bicubic/X{scale}", scale)
    assert measure.score(measure.bicubic(scale), pairs, scale).psnr == pytest.approx(network.bicubic[0], abs=0.02)
    model = float_networks.float_network(network, float_networks.float_weights(network, SHARED, tmp_path))
    with measure.evaluating(model):
        assert measure.score(measure.network(model), pairs, scale).psnr == pytest.approx(network.set5, abs=2e-3)


@needs_shared
@pytest.mark.parametrize(("wiring", "recipe"), [("official", "official"), ("paper", "recommended")])
@pytest.mark.parametrize(("name", "weights"), [("SRResNet-64x8", 589_824), ("RDN-10x3", 2_453_504)])
def test_a_cell_of_another_network_trains(name: str, weights: int, wiring: str, recipe: str, tmp_path: Path) -> None:
    network = cells.NETWORKS[name]
    cell = cells.Cell("ddtb", 4, wiring, recipe, network=name, iterations=SHORT.iterations)
    pairs, scale = measuring.validation_images(SHARED, network.scale)[:2], network.scale
    patches, crops = images.Patches(pairs, scale, SHORT.patch, SHORT.batch, cell.seed), images.centres(pairs, scale, 16)
    file = float_networks.float_weights(network, SHARED, tmp_path)

    def finish() -> tuple[torch.nn.Module, pipeline.Progress]:
        opt = pipeline.options(cell, network, file, tmp_path, SHORT)
        return pipeline.train(cell, opt, tmp_path, patches, crops, scale)

    model, progress = finish()
    assert progress.iteration == SHORT.iterations and progress.curve[-1][1] > 15
    cost = measure.cost(model, scale, measure.own_widths(model.eval()))
    assert cost.body_kb == weights / 2 / 1000  # half a byte a weight
    again, resumed = finish()
    assert resumed.iteration == SHORT.iterations, "a finished run is read, not trained again"
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in again.state_dict().items())


def test_a_shorter_run_has_the_same_schedule_in_proportion(tmp_path: Path) -> None:
    whole, short = (
        pipeline.options(cells.Cell("ddtb", 2, recipe="recommended", iterations=length), OWN, WEIGHTS, tmp_path)
        for length in (3000, 600)
    )
    assert [whole["quantization"][key] for key in ("calibration_iters", "static_iters")] == [100, 400]
    assert [short["quantization"][key] for key in ("calibration_iters", "static_iters")] == [20, 80]
    assert whole["train"]["warmup_iter"] == 300 and short["train"]["warmup_iter"] == 60
    assert whole["train"]["scheduler"]["periods"] == [3000] and short["train"]["scheduler"]["periods"] == [600]
    stepped = pipeline.options(cells.Cell("ddtb", 2, recipe="official", iterations=600), OWN, WEIGHTS, tmp_path)
    assert stepped["train"]["scheduler"]["milestones"] == [200, 400]
