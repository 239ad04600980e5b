"""Two gloo processes on the CPU: bounds, gates and statistics are the same in both, gates added in between included."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import distributed, multiprocessing

from srq_nni.errors import OptionError
from srq_nni.models import cpu_distributed
from srq_nni.models.preflight import check_options
from srq_nni.models.quant_sr_model import check_parallel
from tests.models.steps import DDTB, train
from tests.sr_data import batch, changed, float_checkpoint, train_options

pytestmark = [
    pytest.mark.processes,
    pytest.mark.skipif(not distributed.is_gloo_available(), reason="torch was built without gloo"),
    pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step"),
]
BLOCKS = {
    "pams": {"quantizer": "pams", "bits": 4, "calibration_iters": 2},
    "ddtb": DDTB,
    "official": {**DDTB, "profile": "official", "wiring": "paper"},
}


def in_two_processes(worker: Callable[..., None], *args: Any) -> None:
    multiprocessing.spawn(worker, args=args, nprocs=2)


def train_blocks(rank: int, folders: Path, scratch: Path, options: dict[str, Any]) -> None:
    """Train each quantizer on batches that differ by rank, and compare the networks of the ranks."""
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{scratch}/store", rank=rank, world_size=2)
    cpu_distributed.enable()
    from basicsr.models import build_model

    own = [batch(folders, *names) for names in (("astronaut", "chelsea"), ("coffee", "rocket"))][rank]
    for name, block in BLOCKS.items():
        torch.manual_seed(rank)
        own_options = {**changed(options, "quantization", block), "rank": rank, "manual_seed": rank}
        model = build_model(own_options)
        first = weakref.ref(model.net_g)
        logs = train(model, [own], 1, 7)
        assert (first() is None) is (name != "pams")  # two wrappers would each average the gradients
        net = model.get_bare_model(model.net_g)
        state = dict(net.state_dict())
        state |= {f"average {key}": value for key, value in model.net_g_ema.state_dict().items()}
        gathered: list[Any] = [None, None]
        distributed.all_gather_object(gathered, state)
        for key, value in gathered[0].items():
            assert torch.equal(value, gathered[1][key]), (name, key)
        assert len(logs[-1]) == 2
        assert any(".gate." in key for key in state) is (name != "pams")
        assert any("statistic" in key and bool(value.any()) for key, value in state.items())
        if rank == 0:
            torch.save(state, scratch / f"{name}.pth")
    distributed.destroy_process_group()


def test_ranks_stay_equal(photo_folders: Path, tmp_path: Path) -> None:
    options = train_options(photo_folders, float_checkpoint(tmp_path / "float.pth"))
    options |= {"is_train": True, "dist": True, "world_size": 2}
    options["path"] |= {"models": str(tmp_path / "models"), "training_states": str(tmp_path / "states")}
    in_two_processes(train_blocks, photo_folders, tmp_path, options)
    for name in BLOCKS:
        state = torch.load(tmp_path / f"{name}.pth", weights_only=True)
        float_state = torch.load(tmp_path / "float.pth", weights_only=True)["params"]
        assert not torch.equal(state["conv_last.weight"], float_state["conv_last.weight"])


def test_without_the_shim_a_launcher_needs_gpus(
    photo_folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    options = train_options(photo_folders, float_checkpoint(tmp_path / "float.pth"))
    for enabled, launcher, fits in [(False, "pytorch", False), (True, "pytorch", True), (True, "slurm", False)]:
        monkeypatch.setattr(cpu_distributed, "_enabled", enabled)
        if fits:
            check_options(options, is_train=True, launcher=launcher)
            continue
        with pytest.raises(OptionError) as caught:
            check_options(options, is_train=True, launcher=launcher)
        assert str(caught.value) == (
            f"--launcher {launcher}: BasicSR trains one process per GPU and this machine has none; leave --launcher out"
        )


def test_several_gpus_in_one_process_name_the_command_to_use() -> None:
    check_parallel(1, distributed=False)
    check_parallel(4, distributed=True)
    with pytest.raises(OptionError) as caught:
        check_parallel(4, distributed=False)
    assert str(caught.value) == (
        "num_gpu: 4 without a launcher means DataParallel, whose copies lose calibration; "
        "use torchrun --nproc_per_node=4 -m srq_nni.cli.train -opt FILE --launcher pytorch"
    )
