"""The ``quantization:`` block of a YAML file, as checked options; the NNI quantizers take the same ones."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator, model_validator

from srq_nni.compression.presets import WIRINGS
from srq_nni.compression.profiles import SWITCHES, apply_profile, default_of
from srq_nni.errors import OptionError, QuantizationError, did_you_mean, listing
from srq_nni.quantization.grid import check_bits
from srq_nni.quantization.methods import get_method
from srq_nni.quantization.targets import WEIGHT

BESIDE_CONFIG_LIST = {
    "bits": "give quant_dtype there",
    "wiring": "its entries are the wiring",
    "head": "name the convolutions there",
    "tail": "name the convolutions there",
    **{key: "give it in target_settings there" for key, switch in SWITCHES.items() if switch.per_tensor},
}
GATE_KEYS = ("static_iters", "dynamic_ratio", "gate_loss_weight", "gate_statistics", "gate_gradient")
CHOICES = {
    "student": ("float", "random"),
    "gate_statistics": ("per_sample", "official"),
    "gate_gradient": ("straight_through", "official"),
    "observed_weights": ("float", "quantized"),
}


class Bits(BaseModel):
    """Bit widths of weights and activations, 2 to 8 each."""

    model_config = ConfigDict(extra="forbid")
    weight: int
    activation: int


class QuantizationOptions(BaseModel):
    """The ``quantization:`` block of a BasicSR YAML file; ``profiles.SWITCHES`` gives the defaults and their reasons.

    Attributes:
        quantizer: ``pams`` or ``ddtb``.
        bits: 2 to 8, or ``{weight: .., activation: ..}``; needed unless there is a config_list.
        profile: ``official`` sets all keys below, up to ``feature``, to what the papers' released code does.
        wiring: where the preset of the architecture puts quantizers: ``paper``, ``deploy`` or ``official``.
        student: starts from the ``float`` weights of ``path: pretrain_network_g``, or from ``random`` ones.
        head: bits of the convolutions before the body, 2 to 8; floating point if missing, as in both papers.
        tail: bits of those after it (last body convolution, upsampler, output); a float tail bounds the speed.
        config_list: NNI's format, instead of the preset.
        calibration: how activation bounds start; the allowed names depend on the quantizer.
        calibration_iters: number of iterations of the first phase: PAMS trains while its bounds follow the running
            statistic, DDTB watches float activations without an update.
        static_iters: number of iterations that DDTB then trains with its gates held at zero (DDTB only).
        dynamic_ratio: share of activation quantizers that get a gate; the preset's if missing (DDTB only).
        gate_statistics, gate_gradient: see ``quantization.gate.gate_quantize`` (DDTB only).
        gate_loss_weight: weight of the regulariser that holds the gates, for images in [0, 1] (DDTB only).
        percentile: of DDTB's bounds and weights; the preset's value if missing.
        limit_levels: clamp DDTB's codes to 2^k levels.
        observed_weights: whether weights are ``float`` or ``quantized`` while DDTB observes activations.
        feature: module whose input SKT compares; the preset's if missing.
    """

    model_config = ConfigDict(extra="forbid")
    quantizer: str
    bits: int | Bits | None = None
    profile: str = "default"
    wiring: str = default_of("wiring")
    student: str = default_of("student")
    head: int | None = None
    tail: int | None = None
    config_list: list[dict[str, Any]] | None = None
    calibration: str | None = None
    calibration_iters: int = Field(default=default_of("calibration_iters"), ge=0)
    static_iters: int = Field(default=default_of("static_iters"), ge=0)
    dynamic_ratio: float | None = Field(default=default_of("dynamic_ratio"), ge=0, le=1)
    gate_statistics: str = default_of("gate_statistics")
    gate_gradient: str = default_of("gate_gradient")
    gate_loss_weight: float = Field(default=default_of("gate_loss_weight"), ge=0)
    percentile: float | None = default_of("percentile")
    limit_levels: bool = Field(default=default_of("limit_levels"), strict=True)
    observed_weights: str = default_of("observed_weights")
    feature: str | None = None

    @field_validator("bits", mode="before")
    @classmethod
    def _bits_in_range(cls, bits: Any) -> Any:
        if not isinstance(bits, Mapping):
            return check_bits(bits)
        if set(bits) != {"weight", "activation"}:
            raise OptionError(f"bits: keys {listing(bits)} are not allowed; give both 'weight' and 'activation'")
        return {tensor: check_bits(width, name=f"bits.{tensor}") for tensor, width in bits.items()}

    @field_validator("head", "tail", mode="before")
    @classmethod
    def _end_bits_in_range(cls, bits: Any, info: ValidationInfo) -> Any:
        return None if bits is None else check_bits(bits, name=str(info.field_name))

    @field_validator("quantizer")
    @classmethod
    def _known_quantizer(cls, name: str) -> str:
        return get_method(name).name

    @field_validator(*CHOICES)
    @classmethod
    def _known_choice(cls, name: str, info: ValidationInfo) -> str:
        allowed = CHOICES[str(info.field_name)]
        if name not in allowed:
            near = did_you_mean(name, allowed)
            raise OptionError(f"{info.field_name}: {name!r} is not known; give one of {', '.join(allowed)}{near}")
        return name

    @field_validator("wiring")
    @classmethod
    def _known_wiring(cls, name: str) -> str:
        return check_wiring(name)

    @model_validator(mode="after")
    def _nothing_is_ignored(self) -> QuantizationOptions:
        if self.config_list is not None and not self.config_list:
            raise OptionError("config_list: it is empty; name modules in it, or delete it to get the preset")
        if self.config_list is None and self.bits is None:
            raise OptionError("key 'bits' is missing; add it below 'quantization:'")
        for key in GATE_KEYS:
            if key in self.model_fields_set and self.quantizer != "ddtb":
                raise OptionError(f"{key}: {self.quantizer} has no gates; delete it, or set quantizer: ddtb")
        if self.quantizer == "ddtb" and self.calibration_iters < 1:
            raise OptionError("calibration_iters: 0 leaves ddtb without an observation; give at least 1")
        for key, instead in BESIDE_CONFIG_LIST.items():
            if self.config_list is not None and key in self.model_fields_set:
                raise OptionError(f"{key}: it has no effect beside config_list; {instead}")
        for key, switch in SWITCHES.items():
            given = key in self.model_fields_set and getattr(self, key) is not None
            if given and (switch.pams if self.quantizer == "pams" else switch.ddtb) is None:
                raise OptionError(f"{key}: {self.quantizer} has no such setting; delete it")
        return self

    def bits_of(self, target: str) -> int:
        """Return the bit width that ``bits`` gives a target; not for options with a config_list."""
        assert self.bits is not None
        if isinstance(self.bits, int):
            return self.bits
        return self.bits.weight if target == WEIGHT else self.bits.activation


def options_from(block: Mapping[str, Any]) -> QuantizationOptions:
    """Read a ``quantization:`` block.

    Raises:
        OptionError: one sentence that names the key, what was given and what is allowed.
    """
    if not isinstance(block, Mapping):
        raise OptionError(f"quantization: {block!r} is not a block; give at least 'quantizer' and 'bits' below it")
    try:
        return QuantizationOptions.model_validate(apply_profile(block))
    except QuantizationError as error:
        raise OptionError(f"quantization: {error}") from None
    except ValidationError as error:
        raise OptionError(f"quantization: {_sentence(error)}") from None


def _sentence(error: ValidationError) -> str:
    first = error.errors()[0]
    key = ".".join(str(part) for part in first["loc"])
    cause = first.get("ctx", {}).get("error")
    if isinstance(cause, Exception):
        return str(cause)
    if first["type"] == "extra_forbidden":
        known = QuantizationOptions.model_fields
        return f"key '{key}' is not known; allowed are {', '.join(known)}{did_you_mean(key, known)}"
    if first["type"] == "missing":
        return f"key '{key}' is missing; add it below 'quantization:'"
    return f"{key}: {first['input']!r} is not allowed ({first['msg'][0].lower()}{first['msg'][1:]})"


def check_wiring(wiring: str) -> str:
    """Return ``wiring`` if it is known; raise a QuantizationError otherwise."""
    if wiring not in WIRINGS:
        raise QuantizationError(
            f"wiring: {wiring!r} is not known; give one of {', '.join(WIRINGS)}{did_you_mean(wiring, WIRINGS)}"
        )
    return wiring
