"""Every switch that decides how faithful a run is to the papers' released code: default, official value, and why.

``quantization: {profile: official}`` sets all of them to what the released code does, for repeating published numbers;
a key that stands beside it wins. Not repeated: the released DDTB counts 14 test images among the 1014 that it observes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from srq_nni.compression.settings import idle
from srq_nni.errors import OptionError, did_you_mean
from srq_nni.quantization.least_error import CALIBRATION
from srq_nni.quantization.methods import METHODS
from srq_nni.quantization.percentile import implied_by
from srq_nni.quantization.targets import WEIGHT
from srq_nni.quantization.weight import LEAST_ERROR

PROFILES = ("default", "official")
PRESET = None  # the published value of the architecture, from presets.py


@dataclass(frozen=True)
class Switch:
    """One key of the ``quantization:`` block.

    Attributes:
        reason: why the default is what it is, or what both are.
        pams, ddtb: (default, official), or None if the quantizer has no such key.
        official_on: architecture -> official value, where it differs there.
        before: quantizer -> what a checkpoint means that was written before the key existed.
        per_tensor: the key may stand in an entry of a config_list.
    """

    reason: str
    pams: tuple[Any, Any] | None = None
    ddtb: tuple[Any, Any] | None = None
    official_on: Mapping[str, Any] = field(default_factory=dict)
    before: Mapping[str, Any] = field(default_factory=dict)
    per_tensor: bool = False

    def default(self, quantizer: str) -> Any:
        """Return the default of a quantizer that has the key."""
        values = self.pams if quantizer == "pams" else self.ddtb
        return None if values is None else values[0]


SWITCHES: dict[str, Switch] = {
    "wiring": Switch(
        "as the papers draw it; in the released code conv1 reads a float, so no engine can run it",
        pams=("paper", "official"),
        ddtb=("paper", "official"),
    ),
    "student": Switch(
        "both papers start from the float network; the released PAMS loads it into the teacher alone",
        pams=("float", "random"),
        ddtb=("float", "float"),
    ),
    "calibration": Switch(
        "bounds start where rounding and clipping cost least, over all batches; released: maximum or percentile of the "
        "last batch alone, PAMS without a clamp meanwhile, DDTB at 2 bits only",
        pams=(CALIBRATION, "official"),
        ddtb=(CALIBRATION, "official"),
        per_tensor=True,
    ),
    "calibration_iters": Switch(
        "a running statistic settles within 100 batches; released: an epoch of 1000", pams=(100, 1000), ddtb=(100, 1000)
    ),
    "static_iters": Switch("as many times calibration as released: epochs 2 to 5 after epoch 1", ddtb=(400, 4000)),
    "percentile": Switch("published: 99, for RDN 95 and its weights 100", ddtb=(PRESET, PRESET), per_tensor=True),
    "weight_range": Switch(
        "a factor on the step of least squared error trains; published: the step of the maximum, or of percentiles",
        pams=("learned", "official"),
        ddtb=("learned", "percentile"),
        before={"pams": "max", "ddtb": "percentile"},
        per_tensor=True,
    ),
    "limit_levels": Switch(
        "2^k levels are what k bits hold; released: 2^k + 1 where upper == -lower", ddtb=(True, False), per_tensor=True
    ),
    "dynamic_ratio": Switch("published: EDSR 0.3, RDN 0.5, SRResNet 0.1", ddtb=(PRESET, PRESET)),
    "gate_statistics": Switch(
        "an image's gate must not depend on its batch; released: minimum and maximum of the whole batch",
        ddtb=("per_sample", "official"),
        per_tensor=True,
    ),
    "gate_gradient": Switch(
        "all parameters of a gate train; released: the gradient stops at its last convolution",
        ddtb=("straight_through", "official"),
        per_tensor=True,
    ),
    "gate_start": Switch(
        "as released; neutral opens a gate where it leaves the bounds as they are: for low rates and many gates",
        ddtb=("random", "random"),
        per_tensor=True,
    ),
    "gate_loss_weight": Switch("released: 1 for images in [0, 255]", ddtb=(1 / 255, 1 / 255)),
    "observed_weights": Switch(
        "dynamic intensity is that of the float network; released: RDN's weights stay quantized meanwhile",
        ddtb=("float", "float"),
        official_on={"RDN": "quantized"},
    ),
}


def default_of(key: str, quantizer: str = "ddtb") -> Any:
    """Return the default of a switch."""
    return SWITCHES[key].default(quantizer)


def apply_profile(block: Mapping[str, Any], architecture: str | None = None) -> dict[str, Any]:
    """Return a ``quantization:`` block with the values of its ``profile`` written out, where it gives none itself.

    Args:
        block: the block; what is wrong with it otherwise is left for ``options_from`` to find.
        architecture: type of ``network_g``; without it the values of most architectures are taken.

    Raises:
        OptionError: for an unknown profile.
    """
    profile = block.get("profile", "default")
    if profile not in PROFILES:
        raise OptionError(
            f"quantization: profile: {profile!r} is not known; give one of {', '.join(PROFILES)}"
            f"{did_you_mean(profile, PROFILES)}"
        )
    values = {} if profile == "default" else _values(block.get("quantizer"), 1)
    if profile == "official" and architecture is not None:
        own = {key: switch.official_on.get(architecture) for key, switch in SWITCHES.items()}
        values |= {key: value for key, value in own.items() if key in values and value is not None}
    return _fill(block, values)


def resolve(block: Mapping[str, Any], architecture: str | None = None) -> dict[str, Any]:
    """Return a block that says everything itself: the profile and the defaults written out, the profile's name gone.

    Checkpoints store it, so that a later change of a profile or a default leaves them what they were.
    """
    complete = _fill(apply_profile(block, architecture), _values(block.get("quantizer"), 0))
    complete.pop("profile", None)
    return without_idle(complete)


def as_written_before(block: Mapping[str, Any]) -> dict[str, Any]:
    """Return the block of a checkpoint with the keys that did not exist when it was written."""
    quantizer = str(block.get("quantizer"))
    values = {key: switch.before.get(quantizer) for key, switch in SWITCHES.items()}
    return without_idle(_fill(block, {key: value for key, value in values.items() if value is not None}))


def is_resolved(block: Mapping[str, Any]) -> bool:
    """Whether a block with a config_list looks as ``resolve`` writes it: no profile, and nothing left to default."""
    written = [key for key in _values(block.get("quantizer"), 0) if not SWITCHES[key].per_tensor and key != "wiring"]
    return "profile" not in block and bool(written) and all(key in block for key in written)


def without_idle(block: Mapping[str, Any]) -> dict[str, Any]:
    """Return a stored block without the settings that its entries cannot use, which were written into all of them."""
    entries = block.get("config_list")
    if not isinstance(entries, list | tuple) or not _known(block.get("quantizer")):
        return dict(block)
    return {**block, "config_list": [_used(entry, block["quantizer"]) for entry in entries]}


def _used(entry: Any, quantizer: str) -> Any:
    """An entry with a ``wiring`` stands for a preset's entries, which have other targets."""
    if not isinstance(entry, Mapping) or "wiring" in entry:
        return entry
    dropped = idle(entry, entry, quantizer)
    return {key: value for key, value in entry.items() if key not in dropped}


def _values(quantizer: Any, position: int) -> dict[str, Any]:
    pairs = {key: switch.pams if quantizer == "pams" else switch.ddtb for key, switch in SWITCHES.items()}
    known = pairs if _known(quantizer) else {}
    return {key: pair[position] for key, pair in known.items() if pair is not None and pair[position] is not None}


def _known(quantizer: Any) -> bool:
    return isinstance(quantizer, str) and quantizer in METHODS


def _fill(block: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``block`` with ``values`` below its own; beside a config_list those of a tensor go into its entries."""
    entries = block.get("config_list")
    if not isinstance(entries, list | tuple):
        return _beside(values, block)
    below = {key: value for key, value in values.items() if SWITCHES[key].per_tensor}
    above = {key: value for key, value in values.items() if key not in below and key != "wiring"}
    filled = [_fill_entry(entry, below, block.get("quantizer")) for entry in entries]
    return {**above, **block, "config_list": filled}


def _fill_entry(entry: Any, values: Mapping[str, Any], quantizer: Any) -> Any:
    """An entry with a ``wiring`` stands for a preset's entries, which take no further settings."""
    if not isinstance(entry, Mapping) or "wiring" in entry:
        return entry
    unused = idle(values, entry, quantizer) if _known(quantizer) else []
    filled = _beside({key: value for key, value in values.items() if key not in unused}, entry)
    targets = entry.get("target_settings")
    if isinstance(targets, Mapping):
        filled["target_settings"] = {
            target: _fill_target(settings, range_key(target), entry) for target, settings in targets.items()
        }
    return filled


def _fill_target(settings: Any, key: str, entry: Mapping[str, Any]) -> Any:
    """Write out what a percentile of a target stands for, before the default of its entry could count."""
    if not isinstance(settings, Mapping) or settings.get("percentile") is None or key in entry:
        return settings
    return {key: implied_by(settings["percentile"], default_of(key)), **settings}


def range_key(target: str) -> str:
    """Return the switch that says how the grid of a target is found."""
    return "weight_range" if target == WEIGHT else "calibration"


def _beside(values: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``values`` below ``given``, whose percentile, if alone, stands for how bounds start and weights range."""
    percentile, replaced = given.get("percentile"), LEAST_ERROR
    below = {key: implied_by(percentile, value) if value in replaced else value for key, value in values.items()}
    return {**below, **given}
