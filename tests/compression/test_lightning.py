"""NNI's LightningEvaluator, which needs PyTorch Lightning, a package that nothing else here uses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import srq_nni
from tests.compression.doors import batches, network

lightning = pytest.importorskip("pytorch_lightning", reason="PyTorch Lightning is not installed")
pytestmark = pytest.mark.filterwarnings("ignore")


class Module(lightning.LightningModule):  # type: ignore[misc]
    def __init__(self) -> None:
        super().__init__()
        self.net = network()

    def training_step(self, batch: dict[str, torch.Tensor], index: int) -> torch.Tensor:
        return (self.net(batch["lq"]) - batch["gt"]).abs().mean()

    def configure_optimizers(self) -> Any:
        import nni

        optimizer = nni.trace(torch.optim.Adam)(self.parameters(), lr=1e-4)
        return [optimizer], [nni.trace(torch.optim.lr_scheduler.LambdaLR)(optimizer, lambda step: 1.0)]


class Data(lightning.LightningDataModule):  # type: ignore[misc]
    def __init__(self, folder: str) -> None:
        super().__init__()
        self.folder = folder

    def train_dataloader(self) -> Any:
        return torch.utils.data.DataLoader(batches(Path(self.folder)) * 4, batch_size=None)


@pytest.mark.parametrize("name", ["PAMSQuantizer", "DDTBQuantizer"])
def test_lightning_trains_the_bounds_in_their_own_group(photo_folders: Path, name: str) -> None:
    import nni
    from nni.compression.utils import LightningEvaluator

    settings = {"accelerator": "cpu", "logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = nni.trace(lightning.Trainer)(max_epochs=1, **settings)
    module = Module()
    entries = [{"op_names_re": [r"net\.body\.0\.conv[12]$"], "quant_dtype": "int4"}]
    evaluator = LightningEvaluator(trainer, nni.trace(Data)(str(photo_folders)))
    phases = {"calibration_iters": 2, **({"static_iters": 2} if name == "DDTBQuantizer" else {})}
    quantizer = getattr(srq_nni, name)(module, entries, evaluator, **phases)
    groups: list[float] = []
    quantizer.bound_model.on_train_start = lambda: groups.extend(
        group["lr"] for group in quantizer.bound_model.trainer.optimizers[0].param_groups
    )
    _, config = quantizer.compress(max_steps=None, max_epochs=1)
    assert quantizer.clock.count == 8 and quantizer.clock.phase == "final"
    assert groups[:2] == [1e-4, 1e-2]
    assert all((targets["_input_0"]["bounds"].abs() != 10).all() for targets in config.values())
