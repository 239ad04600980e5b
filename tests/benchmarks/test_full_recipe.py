"""The published settings: their commands are those of the option files, each runs, and scores reach the page."""

from __future__ import annotations

import copy
import functools
import re
import shlex
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from torch import distributed

from srq_nni.cli.pipeline import parser_for
from srq_nni.compression.options import options_from
from srq_nni.compression.profiles import resolve
from srq_nni.models.options import apply_override, read_options
from srq_nni.summary import summarize_options
from tests.sr_data import REPOSITORY

FOLDER = REPOSITORY / "benchmarks"
PHOTOS = REPOSITORY / "data" / "photos"
sys.path[:0] = [str(FOLDER / "full_recipe"), str(FOLDER / "accuracy"), str(FOLDER)]

import commands  # noqa: E402
import dry_run  # noqa: E402
import page  # noqa: E402
import published  # noqa: E402
import recipe  # noqa: E402
import recipes  # noqa: E402
import scores  # noqa: E402

RUNS = commands.runs()
REPRESENTATIVE = "full_DDTB_EDSR_x2_2bit_official"


def options_of(words: list[str], phase: str) -> dict:
    """Return the options that a printed command has, read as ``srq`` reads them."""
    start = words.index("-opt")
    args = parser_for(phase, "").parse_args(words[start:])
    assert args.launcher == ("pytorch" if words[0] == "torchrun" else "none")
    options = copy.deepcopy(options_in(args.opt))
    for entry in args.force_yml:
        apply_override(options, entry)
    return options


@functools.cache
def options_in(file: str | Path) -> dict:
    """Return the options of a file as it stands, which are not to be changed."""
    return read_options(REPOSITORY / file)


def test_there_is_a_run_for_each_published_row_and_recipe() -> None:
    rows = {(s.method, s.network, s.scale, s.bits) for s in published.settings()}
    wanted = {
        ("DDTB", network, scale, bits) for network in published.NETWORKS for scale in (2, 4) for bits in (2, 3, 4)
    }
    wanted |= {("PAMS", network, scale, bits) for network in ("EDSR", "RDN") for scale in (2, 4) for bits in (4, 8)}
    assert rows == wanted
    assert len({run.name for run in RUNS}) == len(RUNS) == 2 * len(rows)


def test_the_length_is_the_papers() -> None:
    assert commands.arithmetic() == (
        "800 images of DIV2K x 20 repeats / 16 a batch = 1,000 iterations an epoch; x 60 epochs = 60,000 iterations"
    )
    for run in RUNS:
        assert options_in(str(run.file("train")))["train"]["total_iter"] == commands.iterations()


@pytest.mark.parametrize("run", RUNS, ids=lambda run: run.name)
def test_the_commands_say_what_the_row_says(run: commands.Run) -> None:
    setting = run.setting
    trained, tested = options_of(run.training(4), "train"), options_of(run.testing(), "test")
    for opt in (trained, tested):
        assert opt["name"] == run.name
        assert opt["scale"] == opt["network_g"]["upscale"] == setting.scale
        assert opt["network_g"]["type"] == setting.network
        block = options_from(opt["quantization"])
        assert (block.quantizer, block.bits) == (setting.method.lower(), setting.bits)
        assert block.wiring == commands.WIRINGS[run.recipe]
    assert trained["quantization"] == tested["quantization"]
    assert 4 * trained["datasets"]["train"]["batch_size_per_gpu"] == 16
    train, scheduler = trained["train"], trained["train"]["scheduler"]
    assert train["total_iter"] == 60_000
    assert tested["path"]["pretrain_network_g"] == f"experiments/{run.name}/models/net_g_60000.pth"
    if run.recipe == "official":
        assert (train["optim_g"]["lr"], train.get("optim_q"), scheduler["milestones"][0]) == (1e-4, None, 10_000)
        resolved = resolve(trained["quantization"], setting.network)
        assert resolved["calibration"] == "official" and resolved["calibration_iters"] == 1000
        assert resolved["student"] == "float"
        if setting.method == "DDTB":
            assert resolved["static_iters"] == 4000 and resolved["gate_statistics"] == "official"
            assert (resolved["observed_weights"] == "quantized") is (setting.network == "RDN")
    else:
        assert train["optim_q"] == recipes.COSINE["optim_q"]
        assert (scheduler["periods"], train["warmup_iter"]) == ([60_000], 6000)
        assert trained["quantization"]["calibration"] == "mse"
        assert trained["quantization"]["weight_range"] == "learned"
        assert trained["quantization"]["calibration_iters"] == 1000


def test_one_gpu_needs_no_launcher() -> None:
    words = RUNS[0].training(1)
    assert words[:2] == ["srq", "train"] and "--launcher" not in words
    assert options_of(words, "train")["datasets"]["train"]["batch_size_per_gpu"] == 16


def test_the_page_is_what_the_script_writes(tmp_path: Path) -> None:
    text = page.PAGE.read_text()
    again = tmp_path / "published.md"
    again.write_text(text)
    assert recipe.main(["--page", "--docs", str(again)]) == 0
    assert again.read_text() == text, "run python benchmarks/full_recipe/recipe.py --page"


def test_printed_numbers_keep_their_order() -> None:
    """More bits never score less in a published table, and no quantized network more than 0.1 dB above its float."""
    rows = {(s.method, s.network, s.scale, s.bits): s for s in published.settings()}
    for (method, network, scale, bits), setting in rows.items():
        for name in published.SETS:
            own, teacher = setting.scores[name].psnr, setting.floats[name].psnr
            more = rows.get((method, network, scale, bits + 1))
            assert more is None or float(own) < float(more.scores[name].psnr)
            assert not (own and teacher) or float(own) < float(teacher) + 0.1


@pytest.mark.slow
@pytest.mark.parametrize(("network", "scale"), published.COVERAGE)
def test_coverage_is_what_the_summary_counts(network: str, scale: int) -> None:
    for run in RUNS:
        if (run.setting.network, run.setting.scale, run.setting.bits) == (network, scale, 2):
            words = run.training(1)
            summary = summarize_options(REPOSITORY / run.file("train"), words[words.index("--force_yml") + 1 :])
            share = published.COVERAGE[network, scale][commands.WIRINGS[run.recipe]]
            assert summary.coverage == pytest.approx(share, abs=6e-5)


def log_of(run: commands.Run, folder: Path, sets: tuple[str, ...] = published.SETS, iteration: int = 60_000) -> Path:
    """Write a log as ``srq test`` writes it; ``test_dry_run`` reads a real one."""
    lines = [f"2026-11-25 10:00:00,000 INFO: \n  quantization:[\n    bits: {run.setting.bits}\n  ]"]
    lines += [f"  path:[\n    pretrain_network_g: {run.model(iteration)}\n  ]"]
    for number, name in enumerate(sets):
        best = f"\tBest: 0 @ {run.name} iter"
        lines += [f"2026-11-2{number} 10:00:01,000 INFO: Validation {name}"]
        lines += [f"\t # psnr: 3{number}.1234{best}\n\t # ssim: 0.8{number}00{best}\n"]
    path = folder / "results" / run.name / f"test_{run.name}_20261125_100000.log"
    path.parent.mkdir(parents=True)
    path.write_text("\n".join(lines))
    return path


def test_scores_of_finished_runs_reach_the_page_and_stay(tmp_path: Path) -> None:
    docs, table = tmp_path / "published.md", tmp_path / "scores.csv"
    docs.write_text(page.PAGE.read_text())
    (first, second) = commands.runs("DDTB_EDSR_x4_2bit")
    for number, run in enumerate((first, second)):
        folder = tmp_path / str(number)
        log_of(run, folder)
        arguments = ["--collect", str(folder), "--table", str(table), "--docs", str(docs)]
        assert recipe.main(arguments) == 0
    text = docs.read_text()
    own = "30.123 / 0.8000 (-0.85)"
    assert f"| DDTB | 2 | Set5 | 32.10 / 0.894 | 30.97 / 0.876 | {own} | {own} | README of zysxmu/DDTB" in text
    assert "2 of 52 runs are finished" in text
    assert text.count(page.NOT_RUN + " |") == 2 * 104 - 8
    assert scores.read_scores(table)[first.name].tested == "2026-11-20"


def test_a_negative_ssim_is_a_number(tmp_path: Path) -> None:
    run = RUNS[0]
    log = log_of(run, tmp_path)
    log.write_text(log.read_text().replace("ssim: 0.8100", "ssim: -0.0012"))
    assert scores.read_log(log, run, 60_000).scores["Set14"] == (31.1234, -0.0012)


def test_logs_that_do_not_belong_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = commands.runs(REPRESENTATIVE)[0]
    cases = {
        "has no PSNR and SSIM of B100, Urban100; repeat srq test": {"sets": ("Set5", "Set14")},
        "is not of experiments/full_DDTB_EDSR_x2_2bit_official/models/net_g_60000.pth, the": {"iteration": 5000},
    }
    for number, (message, changes) in enumerate(cases.items()):
        log_of(run, tmp_path / str(number), **changes)  # type: ignore[arg-type]
        with pytest.raises(SystemExit) as ended:
            recipe.main(["--collect", str(tmp_path / str(number)), "--table", str(tmp_path / "t.csv")])
        assert ended.value.code == 2 and message in capsys.readouterr().err
    assert not (tmp_path / "t.csv").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--gpus", "3"], "--gpus: 3 is not allowed; give one of 1, 2, 4, 8, 16, so that all together see the"),
        (["--only", "EDSRx4"], "--only: 'EDSRx4' is in no name of a run, such as 'full_DDTB_EDSR_x4_2bit_official'"),
        (["--only", "("], "--only: '(' is not a pattern"),
        (["--dry-run", "/nowhere"], "'/nowhere' is not a folder; give one with photos, such as data/photos"),
        (["--collect", "/nowhere"], "'/nowhere' holds no results/full_.../test_*.log of these runs; give the folder"),
        (["--output", "x.md"], "--output has no meaning without --dry-run; leave it out"),
        (["--page", "--docs", "/nowhere/x.md"], "'/nowhere/x.md' has no lines"),
        (["--dry-run", str(PHOTOS), "--output", "/nowhere/x.md"], "--output: there is no folder '/nowhere'; create"),
    ],
)
def test_wrong_arguments(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        recipe.main(arguments)
    error = capsys.readouterr().err
    assert ended.value.code == 2 and message in error


def test_photos_that_will_not_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for size, message in ((None, "holds no .png or .jpg"), (40, "has 40x40 pixels; give photos of at least 48x48")):
        if size:
            cv2.imwrite(str(tmp_path / "small.png"), np.zeros((size, size, 3), np.uint8))
        with pytest.raises(SystemExit):
            recipe.main(["--dry-run", str(tmp_path)])
        assert message in capsys.readouterr().err


def test_the_list_is_a_shell_script(capsys: pytest.CaptureFixture[str]) -> None:
    assert recipe.main(["--only", "RDN_x4_3bit", "--gpus", "8"]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line and not line.startswith("#")]
    programs = [shlex.split(line)[:2] for line in lines]
    assert programs == [["torchrun", "--nproc_per_node=8"], ["srq", "test"]] * 2


def test_the_widest_choice_comes_first() -> None:
    order = [re.sub(r"_\dbit", "", run.name) for run in dry_run.widest_first(RUNS)]
    assert len(order) == len(RUNS) and len(set(order[:20])) == 20


@pytest.mark.processes
@pytest.mark.skipif(not distributed.is_gloo_available(), reason="torch was built without gloo")
@pytest.mark.parametrize(
    "name", [pytest.param(run.name, marks=[] if run.name == REPRESENTATIVE else [pytest.mark.slow]) for run in RUNS]
)
def test_dry_run(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "dry.md"
    arguments = ["--dry-run", str(PHOTOS), "--only", f"^{name}$", "--gpus", "2", "--output", str(output)]
    assert recipe.main(arguments) == 0, capsys.readouterr().out
    assert re.search(rf"\| {name} \| \d+ \| passed \|", output.read_text())
    assert "1 passed, 0 failed, 51 did not run" in output.read_text()


@pytest.mark.processes
def test_a_dry_run_that_fails_says_why(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(dry_run, "CROP", 30)  # larger than the photos
    assert recipe.main(["--dry-run", str(PHOTOS), "--only", REPRESENTATIVE]) == 1
    out = capsys.readouterr().out
    assert "srq train failed: srq: error: " in out and "0 of 1 passed" in out
