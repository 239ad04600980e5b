"""Who contends: the queue of cells, in the order of what they tell."""

from __future__ import annotations

from collections.abc import Iterator

from cells import NETWORKS, PROTOCOL, Cell
from recipes import (
    ABSOLUTE,
    BEST,
    BEST_OF_LARGER,
    DISTILLED,
    EQUALIZING,
    MIDRISE,
    OF_7_BIT_WEIGHTS,
    OF_CHANNELS,
    OF_EQUALIZED,
    OF_GATES,
    OF_MIDRISE,
    OF_MIDRISE_AND_ABSOLUTE,
    POST_TRAINING,
    RATES_OF_LARGER,
    SEVEN_BIT_WEIGHTS,
    TAUGHT,
    WHOLE_EQUALIZED,
    WITH_SKIPS,
)

from srq_nni.quantization.grid import MAX_BITS

ABLATION = 600  # iterations of the cells that change one thing of a recipe
LONGER = 2000  # of the pairs that ask what more of them change for SRResNet and RDN
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


def whole(bits: int, recipe: str, network: str, wiring: str = "paper") -> Cell:
    """Return a cell of DDTB on another network, at that network's budget."""
    return Cell("ddtb", bits, wiring, recipe, network=network, iterations=NETWORKS[network].iterations)


def queue() -> list[Cell]:
    """Return all cells, those first that tell most."""
    return list(dict.fromkeys(_queue()))


def _midrise() -> Iterator[Cell]:
    """Yield the cells of weights without a level at 0."""
    for bits, seed in ((2, 1), (3, 1), (2, 2), (2, 3)):
        yield Cell("ddtb", bits, recipe=OF_MIDRISE[bits], seed=seed)
    yield Cell("pams", 2, recipe=OF_MIDRISE[2])
    yield Cell("ddtb", 2, recipe=OF_MIDRISE[2], network="EDSR-32x5-shipped")
    larger = f"recommended, distilled, mid-rise, lr {RATES_OF_LARGER[2]}"
    yield whole(2, larger, "SRResNet-64x8")
    yield Cell("ddtb", 2, recipe=larger, network="EDSR-64x8", iterations=ABLATION)
    for bits in (4, 2):
        yield whole(bits, "recommended, distilled, mid-rise, least absolute error, lr 3e-4, bounds 1e-2", "RDN-10x3")
    for bits in (2, 4):
        yield Cell("ddtb", bits, recipe=OF_MIDRISE[bits], iterations=ABLATION)
    yield Cell("ddtb", 2, recipe=OF_MIDRISE_AND_ABSOLUTE, iterations=ABLATION)
    yield Cell("ddtb", 2, recipe=OF_MIDRISE_AND_ABSOLUTE)


def _gates_and_teachers() -> Iterator[Cell]:
    """Yield the cells of gates that start where they change nothing, and of a larger teacher."""
    yield Cell("ddtb", 8, recipe=TAUGHT[8])
    for bits in (8, 4, 2):
        for recipe in OF_GATES[bits]:
            yield Cell("ddtb", bits, recipe=recipe, iterations=ABLATION)
    for bits in (2, 4):
        yield Cell("ddtb", bits, recipe=TAUGHT[bits], iterations=ABLATION)


def _equalized() -> Iterator[Cell]:
    """Yield the cells of float networks in other bases, whose iterations are those of the protocol together."""
    whole_run, short = PROTOCOL.iterations - EQUALIZING, ABLATION - EQUALIZING
    for seed in (1, 2, 3):
        yield Cell("ddtb", 8, recipe=WHOLE_EQUALIZED, seed=seed, iterations=whole_run)
    for bits, recipes in OF_EQUALIZED.items():
        for recipe in recipes:
            yield Cell("ddtb", bits, recipe=recipe, iterations=short)
    for recipe in ("least error", "least error, PAMS", "least error, per channel"):
        yield Cell("ptq", 8, recipe=f"{recipe}, equalized")


def _without_vnni() -> Iterator[Cell]:
    """Yield the cells of widths that every CPU multiplies exactly."""
    for recipe in ("least error", "least error, PAMS"):
        yield Cell("ptq", 7, recipe=recipe)
    for recipe in SEVEN_BIT_WEIGHTS:
        yield Cell("ptq", 8, recipe=recipe)
    yield Cell("ddtb", 8, recipe=OF_7_BIT_WEIGHTS)


def _longer() -> Iterator[Cell]:
    """Yield the pairs of released and recommended recipe at some times the budgets of their networks."""
    for network, bits, recommended, iterations in (
        ("SRResNet-64x8", 2, BEST_OF_LARGER[2], LONGER),
        ("SRResNet-64x8-whole", 2, BEST_OF_LARGER[2], NETWORKS["SRResNet-64x8-whole"].iterations),
        ("RDN-10x3", 4, OF_RDN[-1], LONGER),
    ):
        for wiring, recipe in (("official", "official"), ("paper", recommended)):
            yield Cell("ddtb", bits, wiring, recipe, network=network, iterations=iterations)


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
    yield from _midrise()
    yield from _longer()
    yield from _without_vnni()
    yield from _gates_and_teachers()
    yield from _equalized()
    for bits in (4, 2):
        for recipe in OF_RDN:
            yield whole(bits, recipe, "RDN-10x3")
    for bits in (3, 2, 4, 8):
        yield Cell("ddtb", bits, recipe=BEST[bits], network="EDSR-32x5-shipped")
    yield Cell("ddtb", 2, recipe=ABSOLUTE[2], network="EDSR-32x5-shipped")
    for bits, recipe in ((2, BEST[4]), (4, BEST[4]), *BEST_OF_LARGER.items()):
        yield Cell("ddtb", bits, recipe=recipe, network="EDSR-64x8")
    for bits in (4, 2):
        for recipe in dict.fromkeys((BEST[4], BEST[bits], BEST_OF_LARGER[bits], BEST_OF_LARGER[4])):
            yield whole(bits, recipe, "SRResNet-64x8")
    absolute = "recommended, distilled, least absolute error, lr 5e-4"
    yield whole(2, absolute, "SRResNet-64x8")
    for recipe in (absolute, BEST_OF_LARGER[2]):
        yield Cell("ddtb", 2, recipe=recipe, network="EDSR-64x8", iterations=ABLATION)
    for bits, seed in ((8, 1), (8, 2), (8, 3), (2, 1), (4, 1), (3, 1)):
        yield Cell("ddtb", bits, recipe=OF_CHANNELS[bits], seed=seed)
    for network, bits, rate in (("RDN-10x3", 4, "3e-4"), ("RDN-10x3", 2, "3e-4"), ("SRResNet-64x8", 2, "5e-4")):
        yield whole(bits, f"recommended, distilled, learned per channel, lr {rate}", network)
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
        for recipe, block in POST_TRAINING.items():
            if bits < MAX_BITS or block != MIDRISE:  # where it is what "least error" is
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
                yield whole(bits, recipe, network, wiring)
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
