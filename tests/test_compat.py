"""The shims for BasicSR 1.4.2: harmless when repeated, and each cures the symptom it is there for."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from srq_nni import compat
from srq_nni.errors import CheckpointError


def test_prepare_is_idempotent() -> None:
    compat.prepare()
    first = sys.modules.get("torchvision.transforms.functional_tensor")
    compat.prepare()
    assert sys.modules.get("torchvision.transforms.functional_tensor") is first
    from torchvision.transforms.functional_tensor import rgb_to_grayscale

    gray = rgb_to_grayscale(torch.ones(3, 2, 2))
    assert gray.shape == (1, 2, 2)


def test_an_alias_is_made_once_and_only_where_a_module_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "json.gone", raising=False)
    compat._alias_module("json.gone", "json.decoder")
    alias = sys.modules.pop("json.gone")
    assert alias.JSONDecoder is sys.modules["json.decoder"].JSONDecoder
    compat._alias_module("json.encoder", "json.decoder")
    assert hasattr(sys.modules["json.encoder"], "JSONEncoder")


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (["-opt", "x.yml", "--local-rank=0"], ["-opt", "x.yml", "--local_rank=0"]),
        (["--local-rank", "3"], ["--local_rank", "3"]),
        (["--local_rank=1", "--launcher", "pytorch"], ["--local_rank=1", "--launcher", "pytorch"]),
        (["-opt", "my--local-rank.yml"], ["-opt", "my--local-rank.yml"]),
        ([], []),
    ],
)
def test_the_launchers_rank_is_spelt_as_basicsr_reads_it(given: list[str], expected: list[str]) -> None:
    before = list(given)
    assert compat.normalise_argv(given) == expected
    assert given == before


@pytest.fixture
def opt(tmp_path: Path) -> dict[str, Any]:
    states = tmp_path / "elsewhere" / "training_states"
    states.mkdir(parents=True)
    path = {"training_states": str(states), "models": str(tmp_path / "models"), "resume_state": None}
    return {"auto_resume": True, "num_gpu": 0, "network_g": {}, "path": path}


def write(opt: dict[str, Any], *iterations: int) -> Path:
    folder = Path(opt["path"]["training_states"])
    for iteration in iterations:
        state = {"epoch": 0, "iter": iteration, "optimizers": [], "schedulers": []}
        torch.save(state, folder / f"{iteration}.state")
    return folder


def test_resume_takes_the_newest_state_below_the_root_path(
    opt: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By number, not by name; on the CPU; wherever the working directory is; and the network goes with it."""
    monkeypatch.chdir(tmp_path)
    folder = write(opt, 900, 1000, 80)
    state = compat.load_resume_state(opt)
    assert state is not None and state["iter"] == 1000
    assert opt["path"]["resume_state"] == str(folder / "1000.state")
    assert opt["path"]["pretrain_network_g"] == str(tmp_path / "models" / "net_g_1000.pth")


@pytest.mark.parametrize("damage", ["truncated", "empty", "text", "folder"])
def test_resume_passes_over_a_state_that_cannot_be_read(opt: dict[str, Any], damage: str) -> None:
    folder = write(opt, 10, 20)
    last = folder / "20.state"
    if damage == "folder":
        last.unlink()
        last.mkdir()
    else:
        content = {"truncated": last.read_bytes()[:-100], "empty": b"", "text": b"half a file"}[damage]
        last.write_bytes(content)
    state = compat.load_resume_state(opt)
    assert state is not None and state["iter"] == 10
    assert opt["path"]["resume_state"] == str(folder / "10.state")


def test_resume_with_nothing_to_resume_starts_anew(opt: dict[str, Any]) -> None:
    assert compat.load_resume_state(opt) is None
    Path(opt["path"]["training_states"]).rmdir()
    assert compat.load_resume_state(opt) is None
    opt["auto_resume"] = False
    assert compat.load_resume_state(opt) is None
    assert opt["path"]["resume_state"] is None


def test_other_files_beside_the_states_do_not_disturb(opt: dict[str, Any]) -> None:
    folder = write(opt, 10)
    (folder / "best.state").write_text("mine")
    (folder / ".12.state.4711").write_text("left by a process that died")
    state = compat.load_resume_state(opt)
    assert state is not None and state["iter"] == 10


def test_a_named_state_is_loaded_or_named(opt: dict[str, Any]) -> None:
    folder = write(opt, 10, 20)
    opt["auto_resume"] = False
    opt["path"]["resume_state"] = str(folder / "10.state")
    state = compat.load_resume_state(opt)
    assert state is not None and state["iter"] == 10
    (folder / "10.state").write_bytes(b"")
    with pytest.raises(CheckpointError) as caught:
        compat.load_resume_state(opt)
    assert str(caught.value).startswith(f"path: resume_state: training state '{folder / '10.state'}' cannot be read (")


def test_a_state_runs_no_code(opt: dict[str, Any], tmp_path: Path) -> None:
    class Malicious:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (tmp_path / "trace",)

    folder = write(opt, 10)
    torch.save({"iter": 20, "x": Malicious()}, folder / "20.state")
    state = compat.load_resume_state(opt)
    assert state is not None and state["iter"] == 10
    assert not (tmp_path / "trace").exists()
