"""The published numbers: Y-PSNR in dB and SSIM on four sets, as they were printed, and where they stand.

The full text of neither paper was at hand. What is missing here ("") may well be in a table of theirs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

SETS = ("Set5", "Set14", "B100", "Urban100")
NETWORKS = {"EDSR": "EDSR-baseline", "RDN": "RDN", "SRResNet": "SRResNet"}

DDTB_README = "README of zysxmu/DDTB"
PAMS_README = "early README of colorjam/PAMS (93aff7a)"
PAMS_ABSTRACT = "abstract of arXiv 2011.04212"
DAQ_README = "README of Cheeun/DAQ-pytorch"
GRANULAR_DQ = "table of the Granular-DQ paper"
UNKNOWN = "not at hand"


@dataclass(frozen=True)
class Score:
    """One printed result, or nothing.

    Attributes:
        psnr, ssim: as printed, or empty.
        source: where it was read.
    """

    psnr: str = ""
    ssim: str = ""
    source: str = UNKNOWN

    def __str__(self) -> str:
        return f"{self.psnr} / {self.ssim}" if self.ssim else self.psnr or "–"


@dataclass(frozen=True)
class Setting:
    """What both papers call one row: a method on a network at a scale and a bit width.

    Attributes:
        method: ``DDTB`` or ``PAMS``.
        network: key of ``NETWORKS``, the type of ``network_g``.
        scale: of super-resolution.
        bits: of weights and activations.
        scores, floats: set -> published score of this row and of the float network beside it.
    """

    method: str
    network: str
    scale: int
    bits: int
    scores: Mapping[str, Score]
    floats: Mapping[str, Score]

    def __str__(self) -> str:
        return f"{self.method} on {NETWORKS[self.network]} x{self.scale}, {self.bits} bits"


def _printed(text: str, source: str) -> dict[str, Score]:
    return {name: Score(*cell.split("/"), source) for name, cell in zip(SETS, text.split(), strict=True)}


_DDTB = {
    ("EDSR", 4, 2): "30.97/0.876 27.87/0.764 27.09/0.719 24.82/0.742",
    ("EDSR", 4, 3): "31.52/0.883 28.18/0.771 27.30/0.727 25.33/0.761",
    ("EDSR", 4, 4): "31.85/0.889 28.39/0.777 27.44/0.732 25.69/0.774",
    ("EDSR", 2, 2): "37.25/0.958 32.87/0.911 31.67/0.893 30.34/0.910",
    ("EDSR", 2, 3): "37.51/0.958 33.17/0.914 31.89/0.896 31.01/0.919",
    ("EDSR", 2, 4): "37.72/0.959 33.35/0.916 32.01/0.898 31.39/0.922",
    ("RDN", 4, 2): "30.57/0.867 27.56/0.757 26.91/0.714 24.50/0.728",
    ("RDN", 4, 3): "31.49/0.883 28.17/0.772 27.30/0.728 25.35/0.764",
    ("RDN", 4, 4): "31.97/0.891 28.49/0.780 27.49/0.735 25.90/0.783",
    ("RDN", 2, 2): "36.76/0.955 32.54/0.908 31.44/0.890 29.77/0.903",
    ("RDN", 2, 3): "37.61/0.959 33.26/0.915 31.91/0.897 31.10/0.920",
    ("RDN", 2, 4): "37.88/0.960 33.51/0.917 32.12/0.899 31.76/0.926",
    ("SRResNet", 4, 2): "31.51/0.887 28.23/0.773 27.33/0.728 25.37/0.762",
    ("SRResNet", 4, 3): "31.85/0.890 28.39/0.776 27.44/0.731 25.64/0.770",
    ("SRResNet", 4, 4): "31.97/0.892 28.46/0.778 27.48/0.733 25.77/0.776",
    ("SRResNet", 2, 2): "37.46/0.958 33.02/0.913 31.78/0.895 30.57/0.913",
    ("SRResNet", 2, 3): "37.67/0.959 33.24/0.915 31.95/0.897 31.15/0.919",
    ("SRResNet", 2, 4): "37.78/0.960 33.32/0.916 32.03/0.898 31.40/0.921",
}
_PAMS: dict[tuple[str, int, int], dict[str, Score]] = {
    ("EDSR", 4, 8): {
        "Set5": Score("32.124", source=PAMS_ABSTRACT),
        "Set14": Score("28.585", "0.7811", PAMS_README),
        "Urban100": Score("26.01", "0.784", GRANULAR_DQ),
    },
    ("EDSR", 4, 4): {"Set14": Score("28.199", "0.7725", PAMS_README)},
    ("EDSR", 2, 8): {},
    ("EDSR", 2, 4): {},
    ("RDN", 4, 8): {"Set14": Score("28.721", "0.7848", PAMS_README)},
    ("RDN", 4, 4): {"Set14": Score("27.536", "0.7530", PAMS_README)},
    ("RDN", 2, 8): {},
    ("RDN", 2, 4): {},
}
_FLOAT: dict[tuple[str, str, int], dict[str, Score]] = {
    ("DDTB", "EDSR", 4): _printed("32.10/0.894 28.58/0.781 27.56/0.736 26.04/0.785", DAQ_README),
    ("DDTB", "RDN", 4): _printed("32.24/0.896 28.67/0.784 27.63/0.738 26.29/0.792", DAQ_README),
    ("DDTB", "SRResNet", 4): _printed("32.07/0.893 28.50/0.780 27.52/0.735 25.86/0.779", DAQ_README),
    ("PAMS", "EDSR", 4): {
        "Set5": Score("32.095", source=PAMS_ABSTRACT),
        "Set14": Score("28.576", "0.7813", PAMS_README),
        "Urban100": Score("26.03", "0.784", GRANULAR_DQ),
    },
    ("PAMS", "RDN", 4): {"Set14": Score("28.669", "0.7838", PAMS_README)},
}

# (network, scale) -> wiring -> share of the multiply-accumulates that have two quantized operands, by `srq summary`.
COVERAGE = {
    ("EDSR", 4): {"official": 0.2974, "paper": 0.5948},
    ("EDSR", 2): {"official": 0.4297, "paper": 0.8594},
    ("RDN", 4): {"official": 0.9630, "paper": 0.9646},
    ("RDN", 2): {"official": 0.9896, "paper": 0.9913},
    ("SRResNet", 4): {"official": 0.5318, "paper": 0.5318},
    ("SRResNet", 2): {"official": 0.8182, "paper": 0.8182},
}


def _every_set(scores: Mapping[str, Score]) -> dict[str, Score]:
    return {name: scores.get(name, Score()) for name in SETS}


def settings() -> Iterator[Setting]:
    """Yield every setting, each network and scale together, DDTB before PAMS."""
    scores = {("DDTB", *key): _printed(text, DDTB_README) for key, text in _DDTB.items()}
    scores |= {("PAMS", *key): _every_set(own) for key, own in _PAMS.items()}
    for network in NETWORKS:
        for scale in (4, 2):
            for (method, *key), own in scores.items():
                if key[:2] == [network, scale]:
                    floats = _every_set(_FLOAT.get((method, network, scale), {}))
                    yield Setting(method, network, scale, key[2], own, floats)
