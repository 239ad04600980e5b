"""How the contenders are trained: what each recipe changes of protocol P, and which one is recommended."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Recipe:
    """How a contender is trained.

    Attributes:
        quantization: keys of the ``quantization`` block beside quantizer and wiring; ``bits`` only where weights and
            activations have not the same.
        train: keys of the ``train`` block that replace those of protocol P.
        note: what departs from protocol P, in words.
        teacher: name of its network, where it is not the student's own float network.
        equalized: iterations that put the float network into other bases before; 0 leaves it as it is.
    """

    quantization: Mapping[str, Any] = field(default_factory=dict)
    train: Mapping[str, Any] = field(default_factory=dict)
    note: str = ""
    teacher: str = ""
    equalized: int = 0


def adam(lr: float) -> dict[str, Any]:
    """Return ``train: optim_g``."""
    return {"type": "Adam", "lr": lr, "betas": [0.9, 0.999], "weight_decay": 0}


LEAST_ERROR = {"calibration": "mse", "weight_range": "mse"}
LEARNED = {"calibration": "mse", "weight_range": "learned"}
MAE = {"calibration": "mae", "weight_range": "learned"}
PER_CHANNEL = {"calibration": "mse", "weight_range": "learned_per_channel"}
MIDRISE = {"calibration": "mse", "weight_range": "learned_midrise"}
MAE_MIDRISE = {"calibration": "mae", "weight_range": "learned_midrise"}
NEUTRAL = {"gate_start": "neutral"}
NEUTRAL_GATES = {**LEARNED, **NEUTRAL}
EQUALIZING = 150  # iterations
ALL_GATED, NO_GATES = {"dynamic_ratio": 1.0}, {"dynamic_ratio": 0.0}
WITHOUT_VNNI = {"weight": 7, "activation": 8}  # no two products of these bytes leave int16
POST_TRAINING = {
    "min-max": {"calibration": "percentile", "weight_range": "percentile", "percentile": 100.0},
    "least error": LEAST_ERROR,
    "least absolute error": MAE,
    "least absolute error, PAMS": {"quantizer": "pams", **MAE},
    "least error, per channel": PER_CHANNEL,
    "least error, mid-rise": MIDRISE,
    "least error, PAMS": {"quantizer": "pams", **LEAST_ERROR},
    "least error, weights from the percentile": {"calibration": "mse", "weight_range": "percentile"},
    "least error, bounds from the percentile": {"calibration": "percentile", "weight_range": "mse"},
}
SEVEN_BIT_WEIGHTS = {
    f"{name}, weights of 7 bits": {**POST_TRAINING[name], "bits": WITHOUT_VNNI}
    for name in ("least error", "least error, PAMS")
}
# A quarter of the L1 loss against the truth, three against the teacher.
DISTILL = {
    "pixel_opt": {"type": "L1Loss", "loss_weight": 0.25, "reduction": "mean"},
    "distill_opt": {"type": "L1Loss", "loss_weight": 0.75, "reduction": "mean"},
}
RATE_OF_BOUNDS = "2e-3"  # in widths of the quantizer
COSINE = {
    "optim_g": adam(5e-4),
    "optim_q": {"relative_lr": float(RATE_OF_BOUNDS)},
    "scheduler": {"type": "CosineAnnealingRestartLR", "periods": [3000], "restart_weights": [1], "eta_min": 1e-6},
    "warmup_iter": 300,
}
HOW_DISTILLED = (
    "three quarters of the loss against the output of the teacher, whose input is turned at random; warm-up, cosine"
)
BUT_MSE = "the defaults, but weight_range: mse"
BUT_MAE = "the defaults, but calibration: mae"
BUT_PER_CHANNEL = "the defaults, but weight_range: learned_per_channel"
BUT_NEUTRAL = "the defaults, but gate_start: neutral"
BUT_ALL_GATED = "the defaults, but dynamic_ratio: 1"
BUT_MIDRISE = "the defaults, but weight_range: learned_midrise"


def distilled(quantization: Mapping[str, Any], lr: str, departs: str, bounds: str = RATE_OF_BOUNDS) -> Recipe:
    """Return the recipe that learns from the teacher, too.

    Args:
        quantization: keys of the block.
        lr: rate of the weights.
        departs: what ``quantization`` changes, in words.
        bounds: relative rate of the bounds.
    """
    train = {**COSINE, **DISTILL, "optim_g": adam(float(lr)), "optim_q": {"relative_lr": float(bounds)}}
    beside = "" if bounds == RATE_OF_BOUNDS else f", of bounds {bounds}"
    return Recipe(quantization, train, f"{departs}; {HOW_DISTILLED}; lr {lr}{beside}")


def taught_by(teacher: str, lr: str) -> Recipe:
    """Return the recipe whose teacher is another network, without SKT."""
    own = distilled(NEUTRAL_GATES, lr, f"{BUT_NEUTRAL}; the teacher is {teacher}, no SKT")
    return dataclasses.replace(own, train={**own.train, "skt_opt": None}, teacher=teacher)


def equalized(quantization: Mapping[str, Any], lr: str, departs: str) -> Recipe:
    """Return the recipe whose float network, student and teacher, is equalized first."""
    own = distilled(
        quantization, lr, f"{departs}; {EQUALIZING} of the iterations equalize the float network, not in min"
    )
    return dataclasses.replace(own, equalized=EQUALIZING)


RECIPES = {
    "official": Recipe({"profile": "official", "student": "float"}, note="as the released code, from float weights"),
    "recommended": Recipe(
        LEAST_ERROR,
        COSINE,
        f"{BUT_MSE}: bounds and weights of least squared error, relative steps of bounds; lr 5e-4, warm-up, cosine",
    ),
    **{
        f"recommended, {name}": recipe
        for name, recipe in {
            "bounds from the percentile": Recipe(POST_TRAINING["least error, bounds from the percentile"], COSINE),
            "weights from the percentile": Recipe(POST_TRAINING["least error, weights from the percentile"], COSINE),
            "bounds lr 1e-2": Recipe(LEAST_ERROR, {**COSINE, "optim_q": {"lr": 1e-2}}),
            "lr of protocol P": Recipe(LEAST_ERROR, {"optim_q": {"relative_lr": 2e-3}}),
            "lr 2e-3": Recipe(LEAST_ERROR, {**COSINE, "optim_g": adam(2e-3)}),
            "lr 1e-3": Recipe(LEAST_ERROR, {**COSINE, "optim_g": adam(1e-3)}, "as recommended, with lr 1e-3"),
            "lr 1e-4": Recipe(LEAST_ERROR, {**COSINE, "optim_g": adam(1e-4)}),
            "lr 2e-5": Recipe(LEAST_ERROR, {**COSINE, "optim_g": adam(2e-5)}, "as recommended, with lr 2e-5"),
            "averaged weights": Recipe(LEAST_ERROR, {**COSINE, "ema_decay": 0.99}),
            "distilled": distilled(LEAST_ERROR, "5e-4", BUT_MSE),
            "distilled, no flips": Recipe(LEAST_ERROR, {**COSINE, **DISTILL, "distill_flips": False}),
            **{f"distilled, lr {lr}": distilled(LEAST_ERROR, lr, BUT_MSE) for lr in ("2e-3", "1e-3", "3e-4", "1e-4")},
            **{
                f"distilled, learned steps, lr {lr}": distilled(LEARNED, lr, "the defaults")
                for lr in ("2e-3", "1e-3", "5e-4", "3e-4", "1e-4", "2e-5")
            },
            **{
                f"distilled, learned per channel, lr {lr}": distilled(PER_CHANNEL, lr, BUT_PER_CHANNEL)
                for lr in ("2e-3", "1e-3", "5e-4", "3e-4", "2e-5")
            },
            **{
                f"distilled, least absolute error, lr {lr}": distilled(MAE, lr, BUT_MAE)
                for lr in ("2e-3", "1e-3", "5e-4")
            },
            **{f"distilled, mid-rise, lr {lr}": distilled(MIDRISE, lr, BUT_MIDRISE) for lr in ("2e-3", "1e-3", "5e-4")},
            "distilled, mid-rise, least absolute error, lr 2e-3": distilled(
                MAE_MIDRISE, "2e-3", f"{BUT_MIDRISE}, calibration: mae"
            ),
            **{
                f"distilled, {start}, lr 3e-4, bounds 1e-2": distilled(quantization, "3e-4", departs, "1e-2")
                for start, quantization, departs in (
                    ("learned steps", LEARNED, "the defaults"),
                    ("least absolute error", MAE, BUT_MAE),
                    ("mid-rise, least absolute error", MAE_MIDRISE, f"{BUT_MIDRISE}, calibration: mae"),
                )
            },
            **{
                f"distilled, learned steps, skips of 8 bits, lr {lr}": distilled(
                    {**LEARNED, "skip": 8}, lr, "the defaults, but skip: 8"
                )
                for lr in ("2e-3", "1e-3")
            },
            **{
                f"distilled, neutral gates, lr {lr}": distilled(NEUTRAL_GATES, lr, BUT_NEUTRAL)
                for lr in ("2e-3", "1e-3", "1e-4")
            },
            "distilled, all gated, lr 1e-4": distilled({**LEARNED, **ALL_GATED}, "1e-4", BUT_ALL_GATED),
            "distilled, all gated, neutral gates, lr 1e-4": distilled(
                {**NEUTRAL_GATES, **ALL_GATED}, "1e-4", f"{BUT_ALL_GATED}, gate_start: neutral"
            ),
            **{
                f"distilled, taught by EDSR 64x8, lr {lr}": taught_by("EDSR-64x8", lr)
                for lr in ("2e-3", "1e-3", "1e-4")
            },
            **{
                f"distilled, equalized, lr {lr}": equalized(LEARNED, lr, "the defaults")
                for lr in ("2e-3", "1e-3", "1e-4")
            },
            "distilled, equalized, neutral gates, lr 1e-4": equalized(NEUTRAL_GATES, "1e-4", BUT_NEUTRAL),
            **{
                f"distilled, equalized, learned per channel, {gates}, lr 2e-5": equalized(
                    {**PER_CHANNEL, **quantization}, "2e-5", f"{BUT_PER_CHANNEL}, {departs}"
                )
                for gates, quantization, departs in (
                    ("neutral gates", NEUTRAL, "gate_start: neutral"),
                    ("without gates", NO_GATES, "dynamic_ratio: 0"),
                )
            },
            "distilled, learned steps, weights of 7 bits, lr 2e-5": distilled(
                {**LEARNED, "bits": WITHOUT_VNNI}, "2e-5", "the defaults, but weights of 7 bits"
            ),
            "without SKT": Recipe(LEAST_ERROR, {**COSINE, "skt_opt": None}),
            "without gates": Recipe({**LEAST_ERROR, **NO_GATES}, COSINE),
        }.items()
    },
    **{name: Recipe(quantization) for name, quantization in {**POST_TRAINING, **SEVEN_BIT_WEIGHTS}.items()},
    **{
        f"{name}, equalized": Recipe(
            POST_TRAINING[name],
            note=f"not trained; {EQUALIZING} iterations equalize the float network, weights counted, too",
            equalized=EQUALIZING,
        )
        for name in ("least error", "least error, PAMS", "least error, per channel")
    },
    "no-skt": Recipe(
        {"profile": "official", "student": "float"}, {"skt_opt": None}, note="as the released code, without SKT"
    ),
}
BEST_RATES = {4: "1e-3", 2: "2e-3", 3: "2e-3", 8: "2e-5"}  # of whole runs of EDSR 32x5
RATES_OF_LARGER = {4: "3e-4", 2: "5e-4", 3: "5e-4", 8: "2e-5"}  # tried on EDSR 64x8 at 8, 4 and 2 bits; 3 as 2
DISTILLED = {bits: f"recommended, distilled, lr {rate}" for bits, rate in {**BEST_RATES, 8: "1e-4"}.items()}
WITH_SKIPS = {  # of wirings that quantize skips; at 8 bits they have 8 anyway
    bits: f"recommended, distilled, learned steps, skips of 8 bits, lr {rate}"
    for bits, rate in BEST_RATES.items()
    if bits < 8
}
OF_CHANNELS = {bits: f"recommended, distilled, learned per channel, lr {rate}" for bits, rate in BEST_RATES.items()}
OF_MIDRISE = {bits: f"recommended, distilled, mid-rise, lr {BEST_RATES[bits]}" for bits in (2, 3, 4)}
TAUGHT = {
    bits: f"recommended, distilled, taught by EDSR 64x8, lr {rate}"
    for bits, rate in {2: "2e-3", 4: "1e-3", 8: "1e-4"}.items()
}
OF_7_BIT_WEIGHTS = "recommended, distilled, learned steps, weights of 7 bits, lr 2e-5"
OF_MIDRISE_AND_ABSOLUTE = "recommended, distilled, mid-rise, least absolute error, lr 2e-3"
ABSOLUTE = {bits: f"recommended, distilled, least absolute error, lr {BEST_RATES[bits]}" for bits in (2, 3, 4)}
BEST, BEST_OF_LARGER = (
    {bits: f"recommended, distilled, learned steps, lr {rate}" for bits, rate in rates.items()}
    for rates in (BEST_RATES, RATES_OF_LARGER)
)
OF_GATES = {  # a start at random first; of 8 bits in short runs
    2: (BEST[2], "recommended, distilled, neutral gates, lr 2e-3"),
    4: (BEST[4], "recommended, distilled, neutral gates, lr 1e-3"),
    8: tuple(
        f"recommended, distilled, {gates}, lr 1e-4"
        for gates in ("learned steps", "neutral gates", "all gated", "all gated, neutral gates")
    ),
}
WHOLE_EQUALIZED = "recommended, distilled, equalized, learned per channel, without gates, lr 2e-5"  # at 8 bits
OF_EQUALIZED = {  # short runs
    2: ("recommended, distilled, equalized, lr 2e-3",),
    4: ("recommended, distilled, equalized, lr 1e-3",),
    8: (
        "recommended, distilled, equalized, lr 1e-4",
        "recommended, distilled, equalized, neutral gates, lr 1e-4",
        "recommended, distilled, equalized, learned per channel, neutral gates, lr 2e-5",
        WHOLE_EQUALIZED,
    ),
}
