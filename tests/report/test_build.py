"""The page of a real run: its numbers, its files, what it says of missing things, and wrong input."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
import torch

import srq_nni
from srq_nni.cli.main import main
from srq_nni.report import open_experiment, write_report
from srq_nni.report.images import compare_images, mean_scores
from srq_nni.speedup.bench import BenchReport, Row
from srq_nni.speedup.machine import Machine
from tests.disks import disk, fill, read_only
from tests.sr_data import write_yaml
from tests.terminals import standard_error
from tests.test_strangers import png

BICUBIC = 30.999  # dB of astronaut, computed from the two files with imresize of BasicSR on float64 BGR


def copied(experiment: Path, folder: Path) -> Path:
    """A copy that a test may change."""
    return Path(shutil.copytree(experiment, folder / "experiments" / "tiny"))


def test_scores_are_those_of_the_validation(experiment: Path) -> None:
    run = open_experiment(experiment)
    comparison = compare_images(run, srq_nni.load(run.newest), limit=8)
    logged = re.findall(r"# psnr: ([\d.]+)", run.logs[0].read_text())
    assert mean_scores(comparison)["quantized"]["psnr"] == pytest.approx(float(logged[-1]), abs=1e-4)
    assert comparison.notes == []
    assert [image.name for image in comparison.images] == ["astronaut", "chelsea", "coffee", "rocket"]
    for image in comparison.images:
        assert set(image.scores) == {"bicubic", "float", "quantized"}
        assert set(image.crops) == {"HR", "bicubic", "float", "quantized"}
        assert all(crop.shape == (64, 64, 3) for crop in image.crops.values())
        apart = abs(image.crops["quantized"].astype(int) - image.crops["float"].astype(int)).mean(2)
        assert (image.difference == apart).all()


def test_bicubic_and_the_limit(experiment: Path) -> None:
    run = open_experiment(experiment)
    comparison = compare_images(run, srq_nni.load(run.newest), limit=1)
    assert comparison.images[0].scores["bicubic"]["psnr"] == pytest.approx(BICUBIC, abs=0.01)
    assert comparison.notes == ["1 of 4 images of photos are shown; --images raises it"]


def test_page_and_pictures(page: Path) -> None:
    text = page.read_text()
    names = {path.name for path in page.parent.iterdir()}
    figures = {"losses", "learning_rates", "metric_psnr", "bounds", "gates", "clipped"}
    figures |= {"quantization_error", "histograms", "crops"}
    assert names == {"report.html"} | {f"{name}{theme}.png" for name in figures for theme in ("", "_dark")}
    for file in page.parent.glob("*.png"):
        assert file.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert "body.0.conv1.input" in text and "body.0.conv2.weight" in text
    assert re.findall(r"<th>(psnr \w+)</th>", text) == ["psnr bicubic", "psnr float", "psnr quantized"]
    assert f"<tr><td>astronaut</td><td>{BICUBIC:.2f}</td>" in text and '<tr class="mean"><td>mean</td><td>' in text
    for name in ("astronaut", "chelsea", "coffee", "rocket"):
        shown = re.findall(rf'<button type="button" data-title="{name}, ([^"]+)">', text)
        assert shown == ["HR", "bicubic", "float", "quantized", "difference", "whole image"]
    assert text.count("<svg") == 4
    outside = [link for link in re.findall(r"(?:src|href|srcset)=\"([^\"]+)\"", text) if link[:5] not in ("data:",)]
    assert outside == ["#images", "#training", "#quantizers", "#layers", "#size"]


@pytest.mark.parametrize("is_terminal", [True, False])
def test_bars(experiment: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_terminal: bool) -> None:
    with standard_error(monkeypatch, is_terminal=is_terminal) as screen:
        main(["report", str(experiment), "-o", str(tmp_path / "report"), "--images", "2"])
    if is_terminal:
        for words in (("Comparing images:", "0/2"), ("Measuring ranges:", "0/2"), ("Measuring errors:", "0/2")):
            assert screen.shows(*words, "<", "image"), words
    else:
        assert screen.text == ""


def test_a_full_disk_and_a_read_only_one(experiment: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with disk(tmp_path / "disk") as folder:
        (folder / "report.html").write_text("old")
        fill(folder, 40_000)
        text = refused(capsys, str(experiment), "-o", str(folder), "--images", "1")
        assert text.endswith("cannot be written: No space left on device; free space on that disk\n")
        assert (folder / "report.html").read_text() == "old" and not list(folder.glob(".*"))
        for file in folder.glob("*.png"):
            assert file.read_bytes().endswith(b"IEND\xaeB`\x82")
        with read_only(folder):
            text = refused(capsys, str(experiment), "-o", str(folder / "report"))
            assert text.endswith("Read-only file system; give a folder on a disk that is not read-only\n")


def test_what_is_missing_is_said(experiment: Path, tmp_path: Path) -> None:
    folder = copied(experiment, tmp_path)
    for file in [*folder.glob("*.log"), *folder.glob("models/net_g_[0-9]*.pth")]:
        file.unlink()
    options = dict(open_experiment(folder).options)
    options["datasets"] = {"train": options["datasets"]["train"]}
    write_yaml(next(folder.glob("*.yml")), options)
    text = write_report(folder).read_text()
    assert "no images: the options of the run have no block &#39;datasets: val&#39;" in text
    assert "No text log of training in this folder." in text
    assert "No numbered checkpoint and no TensorBoard curves" in text
    assert "Activations need validation images." in text
    assert f"Not benchmarked: the result of srq bench CHECKPOINT --json {folder}/bench.json" in text


def test_benchmarks_in_the_folder_are_shown(experiment: Path, tmp_path: Path) -> None:
    folder = copied(experiment, tmp_path)
    machine = Machine("2026-11-25", "abc1234", "A processor", "avx2", False, 2, 0.5, {})
    rows = (Row("openvino", "bfloat16", 1_230_000, notes=("no bfloat16 here",)),)
    (folder / "bench.json").write_text(BenchReport("net.pth", (24, 40), 1, 9, machine, rows).as_json())
    (folder / "other.json").write_text("{}")
    (folder / "nested.json").write_text("[" * 100_000)
    text = write_report(folder, images=1).read_text()
    assert "<h3>net.pth, 40x24 pixels</h3>" in text and "A processor (avx2, no bfloat16)" in text
    assert "<td>bfloat16 [1]</td>" in text and "[1] no bfloat16 here" in text and "<td>1.23</td>" in text
    assert "Not benchmarked" not in text


def test_a_lost_float_network_and_lost_images_are_said(experiment: Path, tmp_path: Path) -> None:
    folder = copied(experiment, tmp_path)
    options = dict(open_experiment(folder).options)
    options["path"] |= {"pretrain_network_t": "gone.pth"}
    write_yaml(next(folder.glob("*.yml")), options)
    run = open_experiment(folder)
    comparison = compare_images(run, srq_nni.load(run.newest), limit=1)
    assert set(comparison.images[0].scores) == {"bicubic", "quantized"}
    assert comparison.notes[0].startswith("no float network: checkpoint '")
    assert comparison.notes[0].endswith("gone.pth' does not exist; give the path of a .pth file")
    options["network_t"] = {"type": "EDSR", "num_feat": 4}  # another network is no float version of this one
    write_yaml(next(folder.glob("*.yml")), options)
    comparison = compare_images(open_experiment(folder), srq_nni.load(run.newest), limit=1)
    assert set(comparison.images[0].scores) == {"bicubic", "float", "quantized"}
    options["datasets"]["val"] |= {"dataroot_gt": "nowhere"}
    write_yaml(next(folder.glob("*.yml")), options)
    notes = compare_images(open_experiment(folder), srq_nni.load(run.newest), limit=1).notes
    assert notes[0].startswith("no images: 'val' cannot be read (")


def test_an_image_of_ten_billion_pixels_is_left_out_and_said(experiment: Path, tmp_path: Path) -> None:
    folder = copied(experiment, tmp_path)
    options = dict(open_experiment(folder).options)
    val = options["datasets"]["val"]
    photos = shutil.copytree(Path(val["dataroot_gt"]).parent, tmp_path / "photos")
    val |= {"dataroot_gt": str(photos / "HR"), "dataroot_lq": str(photos / "LR_bicubic" / "X2")}
    (photos / "HR" / "chelsea.png").write_bytes(png(100_000, 100_000))
    write_yaml(next(folder.glob("*.yml")), options)
    run = open_experiment(folder)
    comparison = compare_images(run, srq_nni.load(run.newest), limit=8)
    assert [image.name for image in comparison.images] == ["astronaut", "coffee", "rocket"]
    assert comparison.notes == [
        f"left out: photos: '{photos / 'HR' / 'chelsea.png'}' unpacks to more than 178956970 pixels; "
        "replace or remove it"
    ]


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    with pytest.raises(SystemExit) as stop:
        main(["report", *arguments])
    assert stop.value.code == 2
    return capsys.readouterr().err


def test_wrong_input(experiment: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wrong = experiment.with_name("tyni")
    assert refused(capsys, str(wrong)) == (
        f"srq: error: experiment '{wrong}' is not a folder; give one that srq train made, such as experiments/NAME"
        "; did you mean 'tiny'?\n"
    )
    assert refused(capsys, str(experiment.parent)) == (
        f"srq: error: '{experiment.parent}' has no folder 'models'; give one that srq train made, experiments/NAME"
        f"; did you mean '{experiment}'?\n"
    )
    assert refused(capsys, str(experiment), "--images", "0") == (
        "srq: error: --images: 0 is not allowed; give a number from 1\n"
    )
    file = tmp_path / "file"
    file.touch()
    assert refused(capsys, str(experiment), "-o", str(file)) == (
        f"srq: error: '{file}' is a file; give a folder with -o\n"
    )
    assert refused(capsys, str(experiment), "-o", str(tmp_path / "a" / "b")) == (
        f"srq: error: '{tmp_path / 'a' / 'b'}' cannot be written: No such file or directory; create its folder first\n"
    )


def test_runs_without_our_checkpoint(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    models = tmp_path / "experiments" / "float" / "models"
    models.mkdir(parents=True)
    assert refused(capsys, str(models.parent)) == (
        f"srq: error: '{models}' holds no net_g_*.pth yet; train until logger: save_checkpoint_freq, then ask again\n"
    )
    torch.save({"params": {"weight": torch.zeros(1)}}, models / "net_g_5.pth")
    assert refused(capsys, str(models.parent)) == (
        f"srq: error: checkpoint '{models / 'net_g_5.pth'}' does not say how it is quantized; "
        "give a run of model_type QuantSRModel\n"
    )
