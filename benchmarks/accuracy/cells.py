"""What a row of the table is of: a network, protocol P, and a cell.

A cell is one finished network: a contender at one bit width with one seed. Protocol P is the same for all of them; a
cell that departs from it says so in its recipe. contenders.py has the queue of all of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[2]
GREY = 255  # images are in [0, 1]: the papers' weight of SKT, 1000, is divided by it


@dataclass(frozen=True)
class Protocol:
    """Protocol P: the budget and the settings that all contenders share."""

    iterations: int = 3000
    batch: int = 16
    patch: int = 32
    milestones: tuple[int, ...] = (1000, 2000)
    lr: float = 1e-4
    bounds_lr: float = 1e-2
    calibration_iters: int = 100
    static_iters: int = 400
    dynamic_ratio: float = 0.3
    skt_weight: float = 1000 / GREY
    crop: int = 2


PROTOCOL = Protocol()


@dataclass(frozen=True)
class Network:
    """A pretrained float network.

    Attributes:
        block: ``network_g`` of BasicSR.
        weights: file name below weights/ of the data, or of the repository.
        set5, set14: Y-PSNR in dB that the float network must reproduce.
        body: pattern over the names of the body's convolutions, for quantizers that know no preset.
        feature: module whose input SKT compares.
        shipped: the weights are those of the repository.
        source: format of ``srq convert`` that the weights have, "" for BasicSR's.
        preset: architecture of the presets, where the type of ``block`` is another name.
        batch, iterations: budget of a whole run, where it is not that of protocol P.
        bicubic: what bicubic enlargement scores at this scale on Set5 and Set14.
    """

    block: Mapping[str, Any]
    weights: str
    set5: float
    set14: float
    body: str = r"body\.\d+\.conv[12]$"
    feature: str = "upsample"
    shipped: bool = False
    source: str = ""
    preset: str = ""
    batch: int = PROTOCOL.batch
    iterations: int = PROTOCOL.iterations
    bicubic: tuple[float, float] = (33.67, 30.33)

    def weights_in(self, data: Path) -> Path:
        """Return the path of the float weights."""
        return (REPOSITORY if self.shipped else data) / "weights" / self.weights

    @property
    def scale(self) -> int:
        return int(self.block.get("upscale", 2))


def _edsr(features: int, blocks: int, mean: list[float]) -> dict[str, Any]:
    return {
        "type": "EDSR",
        "num_in_ch": 3,
        "num_out_ch": 3,
        "num_feat": features,
        "num_block": blocks,
        "upscale": 2,
        "img_range": 255.0,
        "rgb_mean": mean,
    }


SRRESNET = {
    "type": "SRResNet",
    "num_in_ch": 3,
    "num_out_ch": 3,
    "num_feat": 64,
    "num_block": 8,
    "upscale": 4,
    "bias": True,
    "prelu_per_channel": True,
    "img_range": 1.0,
}
RDN = {
    "type": "RDNOwnTail",
    "num_in_ch": 3,
    "num_out_ch": 3,
    "num_feat": 64,
    "num_block": 10,
    "num_layer": 3,
    "num_grow_ch": 64,
    "upscale": 2,
    "img_range": 255.0,
}
DIV2K_MEAN = [0.4488, 0.4371, 0.4040]
NETWORKS = {
    "EDSR-32x5": Network(_edsr(32, 5, [0.0, 0.0, 0.0]), "EDSR_x2_f32b5.pth", 37.380, 32.979),
    "EDSR-64x8": Network(_edsr(64, 8, DIV2K_MEAN), "EDSR_x2_f64b8.pth", 37.804, 33.379),
    # Some twelve times the work a patch of EDSR 32x5, so a quarter of the batch and a fifth of the iterations.
    "SRResNet-64x8": Network(
        SRRESNET,
        "SRResNet_x4_f64b8_bn.pt",
        31.884,
        28.432,
        body=r"residual\.\d+\.conv[12]$",
        feature="upscale",
        source="ddtb",
        batch=4,
        iterations=600,
        bicubic=(28.43, 26.09),
    ),
    # Some twenty times the work a patch.
    "RDN-10x3": Network(
        RDN,
        "RDN_x2_d10c3g64_own_tail.pt",
        36.655,
        32.445,
        body=r"(RDBs\.\d+\.(convs\.\d+\.conv\.0|LFF)|GFF\.[01])$",
        feature="UPNet",
        source="edsr-pytorch",
        preset="RDN",
        batch=4,
        iterations=500,
    ),
    # Trained by this repository's own pipeline, so what is quantized from it may be shipped, too.
    "EDSR-32x5-shipped": Network(_edsr(32, 5, DIV2K_MEAN), "EDSR_x2_f32b5.pth", 37.40, 32.99, shipped=True),
}
# Twenty times the patches of the short runs.
NETWORKS["SRResNet-64x8-whole"] = replace(
    NETWORKS["SRResNet-64x8"], batch=PROTOCOL.batch, iterations=PROTOCOL.iterations
)


@dataclass(frozen=True)
class Cell:
    """One row of the table.

    Attributes:
        method: ``ddtb``, ``pams``, ``qat`` or ``lsq`` (NNI's), ``ptq`` (a grid without training), ``float`` or
            ``bicubic``.
        bits: of weights and activations; 32 for float.
        wiring: where quantizers sit.
        recipe: key of ``RECIPES``.
        seed: of data, gates and crops.
        network: key of ``NETWORKS``.
        iterations: of training.
    """

    method: str
    bits: int
    wiring: str = "paper"
    recipe: str = "recommended"
    seed: int = 1
    network: str = "EDSR-32x5"
    iterations: int = PROTOCOL.iterations

    @property
    def name(self) -> str:
        """Return the key of this cell in the table and the name of its folder."""
        parts = [self.network, self.method]
        if self.bits < 32:
            recipe = self.recipe.replace(", ", "-").replace(" ", "_")
            parts += [self.wiring, recipe, f"{self.bits}bit", f"seed{self.seed}"]
        if self.iterations != PROTOCOL.iterations:
            parts.append(f"{self.iterations}iterations")
        return "-".join(parts)
