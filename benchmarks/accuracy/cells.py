"""What is measured: networks, and the queue of cells in the order of what they tell.

A cell is one finished network: a contender at one bit width with one seed. Protocol P is the same for all of them; a
cell that departs from it says so in its recipe.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recipes import ABSOLUTE, BEST, BEST_OF_LARGER, DISTILLED, OF_CHANNELS, POST_TRAINING, WITH_SKIPS

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
    # Some twelve times the work a patch of EDSR 32x5, so a quarter of the batch and two thirds of the iterations.
    "SRResNet-64x8": Network(
        SRRESNET,
        "SRResNet_x4_f64b8_bn.pt",
        31.884,
        28.432,
        body=r"residual\.\d+\.conv[12]$",
        feature="upscale",
        source="ddtb",
        batch=4,
        iterations=2000,
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
        iterations=2000,
    ),
    # Trained by this repository's own pipeline, so what is quantized from it may be shipped, too.
    "EDSR-32x5-shipped": Network(_edsr(32, 5, DIV2K_MEAN), "EDSR_x2_f32b5.pth", 37.40, 32.99, shipped=True),
}


ABLATION = 600  # iterations of the cells that change one thing of a recipe
SHORT = {"SRResNet-64x8": ABLATION, "RDN-10x3": 500}  # of those that chose the recipes of these networks
LEARNING_RATES = {2: "1e-3", 3: "1e-3", 8: "2e-5", 4: "1e-3"}  # of whole runs with other steps than "recommended"
OF_4_BITS = (
    "recommended",
    "recommended, lr 1e-3",
    "recommended, distilled",
    "recommended, distilled, lr 1e-3",
    BEST[4],
    ABSOLUTE[4],
)
OF_8_BITS = ("recommended, lr 1e-4", "recommended, lr 2e-5", "recommended, distilled, lr 1e-4")
OF_RDN = tuple(
    f"recommended, distilled, {rest}"
    for rest in (
        "lr 3e-4",
        "learned steps, lr 3e-4",
        "learned steps, lr 3e-4, bounds 1e-2",
        "least absolute error, lr 3e-4, bounds 1e-2",
    )
)
WHOLE_RUNS = {
    "SRResNet-64x8": {bits: BEST_OF_LARGER[bits] for bits in (2, 4)},
    "RDN-10x3": dict.fromkeys((4, 2), OF_RDN[-1]),
}
ABLATED = (  # at 2 bits
    "recommended",
    *(f"recommended, {start} from the percentile" for start in ("bounds", "weights")),
    "recommended, bounds lr 1e-2",
    "recommended, lr of protocol P",
    *(f"recommended, lr {lr}" for lr in ("2e-3", "1e-3", "1e-4")),
    "recommended, averaged weights",
    "recommended, distilled",
    "recommended, distilled, no flips",
    *(f"recommended, distilled, lr {lr}" for lr in ("2e-3", "1e-3")),
    BEST[2],
    ABSOLUTE[2],
    "recommended, without SKT",
    "recommended, without gates",
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


def short(bits: int, recipe: str, network: str, wiring: str = "paper") -> Cell:
    """Return a cell of DDTB on a network that has whole runs of its own length and shorter ones that chose for them."""
    return Cell("ddtb", bits, wiring, recipe, network=network, iterations=SHORT[network])


def queue() -> list[Cell]:
    """Return all cells, those first that tell most."""
    return list(dict.fromkeys(_queue()))


def _queue() -> Iterator[Cell]:
    for network in ("EDSR-32x5", "SRResNet-64x8"):
        yield Cell("bicubic", 32, network=network)
    for network in NETWORKS:
        yield Cell("float", 32, network=network)
    for bits in (4, 2, 3, 8):
        yield Cell("ddtb", bits, "official", "official")
    for bits in (4, 2):
        yield Cell("ddtb", bits)
    for bits, lr in LEARNING_RATES.items():
        yield Cell("ddtb", bits, recipe=f"recommended, lr {lr}")
    for bits, recipe in DISTILLED.items():
        yield Cell("ddtb", bits, recipe=recipe)
    for bits, lr in ((2, "1e-3"), (3, "1e-3"), (4, "2e-3")):
        yield Cell("ddtb", bits, recipe=f"recommended, distilled, lr {lr}")
    for bits, recipe in BEST.items():
        for seed in (1,) if bits == 3 else (1, 2, 3):
            yield Cell("ddtb", bits, recipe=recipe, seed=seed)
    for network in ("EDSR-32x5", "EDSR-32x5-shipped"):
        yield Cell("ddtb", 8, recipe="recommended, distilled, learned steps, lr 1e-4", network=network)
    for seed in (1, 2, 3):
        yield Cell("ddtb", 2, recipe=ABSOLUTE[2], seed=seed)
    for method, bits in (("pams", 2), ("ddtb", 3)):
        yield Cell(method, bits, recipe=ABSOLUTE[bits])
    for network, recipes in WHOLE_RUNS.items():
        for bits, recipe in recipes.items():
            whole = NETWORKS[network].iterations
            yield Cell("ddtb", bits, "official", "official", network=network, iterations=whole)
            yield Cell("ddtb", bits, recipe=recipe, network=network, iterations=whole)
    for bits in (4, 2):
        for recipe in OF_RDN:
            yield short(bits, recipe, "RDN-10x3")
    for bits in (3, 2, 4, 8):
        yield Cell("ddtb", bits, recipe=BEST[bits], network="EDSR-32x5-shipped")
    yield Cell("ddtb", 2, recipe=ABSOLUTE[2], network="EDSR-32x5-shipped")
    for bits, recipe in ((2, BEST[4]), (4, BEST[4]), *BEST_OF_LARGER.items()):
        yield Cell("ddtb", bits, recipe=recipe, network="EDSR-64x8")
    for bits in (4, 2):
        for recipe in dict.fromkeys((BEST[4], BEST[bits], BEST_OF_LARGER[bits], BEST_OF_LARGER[4])):
            yield short(bits, recipe, "SRResNet-64x8")
    absolute = "recommended, distilled, least absolute error, lr 5e-4"
    yield short(2, absolute, "SRResNet-64x8")
    for recipe in (absolute, BEST_OF_LARGER[2]):
        yield Cell("ddtb", 2, recipe=recipe, network="EDSR-64x8", iterations=ABLATION)
    for bits, seed in ((8, 1), (8, 2), (8, 3), (2, 1), (4, 1), (3, 1)):
        yield Cell("ddtb", bits, recipe=OF_CHANNELS[bits], seed=seed)
    for network, bits, rate in (("RDN-10x3", 4, "3e-4"), ("RDN-10x3", 2, "3e-4"), ("SRResNet-64x8", 2, "5e-4")):
        yield short(bits, f"recommended, distilled, learned per channel, lr {rate}", network)
    for bits in (2, 4, 3, 8):
        for seed in (1, 2, 3) if bits in (2, 4) else (1,):
            yield Cell("pams", bits, recipe=BEST[bits], seed=seed)
        for method in ("ddtb", "pams"):
            yield Cell(method, bits, "deploy", WITH_SKIPS.get(bits, BEST[bits]))
    yield Cell("ddtb", 2, "deploy", BEST[2])
    for recipe in ABLATED:
        yield Cell("ddtb", 2, recipe=recipe, iterations=ABLATION)
    for recipe in OF_4_BITS:
        yield Cell("ddtb", 4, recipe=recipe, iterations=ABLATION)
    for recipe in ("recommended", *OF_8_BITS):
        yield Cell("ddtb", 8, recipe=recipe, iterations=ABLATION)
    for bits in (2, 4):
        yield Cell("pams", bits, "official", "official", iterations=ABLATION)
        yield Cell("pams", bits, iterations=ABLATION)
    for bits in (8, 4, 3, 2):
        for recipe in POST_TRAINING:
            yield Cell("ptq", bits, recipe=recipe)
    for recipe in ("least error", "least error, PAMS"):
        yield Cell("ptq", 8, recipe=recipe, network="EDSR-64x8")
    for bits in (4, 2):
        for recipe in ("least error", "least absolute error"):
            yield Cell("ptq", bits, recipe=recipe, network="EDSR-64x8")
    yield Cell("ddtb", 2, recipe="recommended, lr 1e-3", network="EDSR-32x5-shipped")
    yield Cell("ddtb", 4, network="EDSR-32x5-shipped")
    for bits in (3, 2, 4):
        yield Cell("ddtb", bits, recipe=DISTILLED[bits], network="EDSR-32x5-shipped")
    yield Cell("pams", 2)
    yield Cell("pams", 8, recipe="recommended, lr 2e-5")
    for bits in (2, 4, 8, 3):
        yield Cell("pams", bits, "official", "official")
    for network in ("SRResNet-64x8", "RDN-10x3"):
        for bits in (4, 2):
            for wiring, recipe in (("official", "official"), ("paper", DISTILLED[bits])):
                yield short(bits, recipe, network, wiring)
    for bits in (4, 2):
        for method in ("pams", "ddtb"):
            yield Cell(method, bits, "official", "no-skt")
    for bits in (4, 2, 8):
        yield Cell("qat", bits, recipe="nni")
        yield Cell("lsq", bits, recipe="nni")
    for seed in (2, 3):
        for bits in (4, 2):
            for method in ("ddtb", "pams"):
                yield Cell(method, bits, recipe=DISTILLED[bits], seed=seed)
    for wiring in ("paper", "deploy"):  # the released code knows its own wiring only
        for bits in DISTILLED:
            for method in ("ddtb", "pams"):
                yield Cell(method, bits, wiring, DISTILLED[bits])
    for bits in (4, 2, 3):
        yield Cell("ddtb", bits, "official", "official", network="EDSR-64x8")
    for bits in (4, 2):
        yield Cell("ddtb", bits, recipe=DISTILLED[bits], network="EDSR-64x8")
