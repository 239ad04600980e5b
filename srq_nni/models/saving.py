"""BasicSR's own writers, made atomic: networks, training states and validation images appear whole or not at all.

BasicSR writes a network of a stock model straight to its name, tries three times, and goes on without it if the disk is
full. Here a refused file ends the run with a sentence, and the old file stays.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from basicsr.models.base_model import BaseModel
from basicsr.utils.dist_util import master_only

from srq_nni import checkpoint
from srq_nni.atomic import atomic_file, write_error
from srq_nni.errors import DataError


@contextmanager
def atomic() -> Iterator[None]:
    """Let BasicSR's models write so in this block."""
    from basicsr.models import sr_model

    places: tuple[tuple[Any, str, Any], ...] = (
        (BaseModel, "save_network", master_only(save_network)),
        (BaseModel, "save_training_state", master_only(save_training_state)),
        (sr_model, "imwrite", write_image),
    )
    originals = [getattr(place, name) for place, name, _ in places]
    for place, name, replacement in places:
        setattr(place, name, replacement)
    try:
        yield
    finally:
        for (place, name, _), original in zip(places, originals, strict=True):
            setattr(place, name, original)


def save_network(
    self: BaseModel,
    net: Any,
    net_label: str,
    current_iter: int,
    param_key: Any = "params",
    metadata: Mapping[str, Any] | None = None,
) -> None:
    """Write ``{net_label}_{iter}.pth`` as BasicSR does, one state dict below each key, and what a quantized network is.

    Args:
        self, net, net_label, current_iter, param_key: as in BasicSR.
        metadata: of the checkpoint; if missing, those of a network that says how it is built.

    Raises:
        WriteError: if the disk refuses it.
    """
    nets = net if isinstance(net, list) else [net]
    keys = param_key if isinstance(param_key, list) else [param_key]
    content: dict[str, Any] = {
        key: {
            name.removeprefix("module."): value.detach().cpu()
            for name, value in self.get_bare_model(part).state_dict().items()
        }
        for key, part in zip(keys, nets, strict=True)
    }
    blocks = checkpoint.blocks_of(self.get_bare_model(nets[0]))
    if metadata is None and blocks is not None:
        metadata = checkpoint.metadata_of(*blocks)
    if metadata is not None:
        content[checkpoint.METADATA_KEY] = metadata
    name = "latest" if current_iter == -1 else current_iter
    checkpoint.save(content, f"{self.opt['path']['models']}/{net_label}_{name}.pth")


def save_training_state(self: BaseModel, epoch: int, current_iter: int) -> None:
    """Write ``{iter}.state``, from which a run goes on.

    Raises:
        WriteError: if the disk refuses it.
    """
    if current_iter == -1:
        return
    state = {
        "epoch": epoch,
        "iter": current_iter,
        "seed": self.opt.get("manual_seed"),
        "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
        "schedulers": [scheduler.state_dict() for scheduler in self.schedulers],
    }
    checkpoint.save(state, f"{self.opt['path']['training_states']}/{current_iter}.state")


def write_image(image: np.ndarray, path: str, params: Any = None, auto_mkdir: bool = True) -> None:
    """Write an image (H, W, 3) in BGR or (H, W), uint8, in the format of its suffix; as BasicSR's ``imwrite``.

    Raises:
        DataError: for a suffix that OpenCV does not know.
        WriteError: if the disk refuses it.
    """
    target = Path(path)
    try:
        done, content = cv2.imencode(target.suffix, image, params or [])
    except cv2.error:
        done = False
    if not done:
        raise DataError(f"'{path}' has a format that OpenCV cannot write; give .png, .jpg or .tif")
    try:
        if auto_mkdir:
            target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise write_error(target, error) from None
    with atomic_file(target) as file:
        file.write(content.tobytes())
