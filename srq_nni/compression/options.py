"""The ``quantization:`` block of a YAML file, as checked options; the NNI quantizers take the same ones."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Annotated, Any

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    WithJsonSchema,
    field_validator,
    model_validator,
)

from srq_nni.compression.presets import WIRINGS
from srq_nni.compression.profiles import PROFILES, SWITCHES, apply_profile, default_of, is_resolved, without_idle
from srq_nni.errors import OptionError, QuantizationError, did_you_mean, listing
from srq_nni.quantization.activation import DDTBActivation, PAMSActivation
from srq_nni.quantization.grid import MAX_BITS, MIN_BITS, check_bits, choice
from srq_nni.quantization.least_error import ERROR_POWERS
from srq_nni.quantization.methods import METHODS, get_method
from srq_nni.quantization.targets import WEIGHT
from srq_nni.quantization.weight import LEAST_ERROR, DDTBWeight, PAMSWeight
from srq_nni.validation import Number, Whole, sentence

BESIDE_CONFIG_LIST = {
    "bits": "give quant_dtype there",
    "wiring": "its entries are the wiring",
    "head": "name the convolutions there",
    "tail": "name the convolutions there",
    "skip": "name the modules there",
    **{key: "give it in target_settings there" for key, switch in SWITCHES.items() if switch.per_tensor},
}
GATE_KEYS = ("static_iters", "dynamic_ratio", "gate_loss_weight", "gate_statistics", "gate_gradient", "gate_start")
CHOICES = {
    "student": ("float", "random"),
    "gate_statistics": ("per_sample", "official"),
    "gate_gradient": ("straight_through", "official"),
    "gate_start": ("neutral", "random"),
    "observed_weights": ("float", "quantized"),
}
CALIBRATIONS = {"pams": PAMSActivation.CALIBRATIONS, "ddtb": DDTBActivation.CALIBRATIONS}
RANGES = {"pams": PAMSWeight.RANGES, "ddtb": DDTBWeight.RANGES}
BitWidth = Annotated[int, WithJsonSchema({"type": "integer", "minimum": MIN_BITS, "maximum": MAX_BITS})]


def _one_of(names: Iterable[str]) -> WithJsonSchema:
    """The validators below have sentences of their own; this tells editors what they allow."""
    return WithJsonSchema({"type": "string", "enum": list(dict.fromkeys(names))})


class Bits(BaseModel):
    """Bit widths of weights and activations, 2 to 8 each."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)

    weight: BitWidth
    """Bits of the weights, 2 to 8."""
    activation: BitWidth
    """Bits of the activations, 2 to 8."""


def bits_of(bits: int | Bits, target: str) -> int:
    """Return the bit width of a target, where both may have the same."""
    if isinstance(bits, int):
        return bits
    return bits.weight if target == WEIGHT else bits.activation


class QuantizationOptions(BaseModel):
    """What is quantized, how and to how many bits. Delete the block and set ``model_type: SRModel``: float training.

    ``profiles.SWITCHES`` gives the defaults and their reasons. The text below each key is its description in the JSON
    schema of option files, too.
    """

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)

    quantizer: Annotated[str, _one_of(METHODS)]
    """pams (symmetric, trainable maximum) or ddtb (trainable lower and upper bound, gates)."""
    bits: BitWidth | Bits | None = None
    """2 to 8, or {weight: .., activation: ..}; needed unless there is a config_list."""
    profile: Annotated[str, _one_of(PROFILES)] = "default"
    """official sets all keys below, up to feature, to what the papers' released code does; a key beside it wins."""
    wiring: Annotated[str, _one_of(WIRINGS)] = default_of("wiring")
    """Where the preset of the architecture puts quantizers: paper (input and weight of every body convolution), deploy
    (skips and branches, too, as ONNX Runtime needs it), tensorrt (skips alone, as NVIDIA advises) or official (as the
    released code; not for engines)."""
    student: Annotated[str, _one_of(CHOICES["student"])] = default_of("student")
    """Whether the network starts from the weights of path: pretrain_network_g (float), or from random ones (random)."""
    head: BitWidth | Bits | None = None
    """Bits of the convolutions before the body, as bits has them; floating point if missing, as in both papers."""
    tail: BitWidth | Bits | None = None
    """Bits of those after it (last body convolution, upsampler, output), as bits has them; a float tail bounds the
    speed."""
    skip: BitWidth | None = None
    """Bits of the skips and of the branches added to them, 2 to 8, where the wiring quantizes them (deploy, tensorrt);
    those of the activations if missing. Few bits there cost most of the PSNR, and engines store 8 bits anyway."""
    config_list: list[dict[str, Any]] | None = None
    """Modules, targets and bits in NNI's format, instead of the preset."""
    calibration: Annotated[str, _one_of(name for names in CALIBRATIONS.values() for name in names)] | None = None
    """How activation bounds start: mse (least squared error; default), mae (least absolute error, closer bounds), max
    (pams), percentile (ddtb) or official."""
    calibration_iters: Whole = Field(default=default_of("calibration_iters"), ge=0)
    """Iterations of the first phase: PAMS trains while its bounds follow the running statistic, DDTB watches float
    activations without an update. The papers' is 1000."""
    static_iters: Whole = Field(default=default_of("static_iters"), ge=0)
    """Iterations that DDTB then trains with its gates held at zero (ddtb only). The paper's is 4000."""
    dynamic_ratio: Number | None = Field(default=default_of("dynamic_ratio"), ge=0, le=1)
    """Share of activation quantizers that get a gate; the published one of the architecture if missing (ddtb only)."""
    gate_statistics: Annotated[str, _one_of(CHOICES["gate_statistics"])] = default_of("gate_statistics")
    """Minimum and maximum that a gate sees: of each image (per_sample) or of the whole batch (official) (ddtb only)."""
    gate_gradient: Annotated[str, _one_of(CHOICES["gate_gradient"])] = default_of("gate_gradient")
    """straight_through trains all parameters of a gate, official its last convolution (ddtb only)."""
    gate_start: Annotated[str, _one_of(CHOICES["gate_start"])] = default_of("gate_start")
    """random starts a gate as the released code does, neutral where it leaves the bounds as they are (ddtb only)."""
    gate_loss_weight: Number = Field(default=default_of("gate_loss_weight"), ge=0)
    """Weight of the regulariser that holds the gates, for images in [0, 1] (ddtb only)."""
    percentile: Annotated[Number, Field(gt=50, le=100)] | None = default_of("percentile")
    """Percentile of DDTB's bounds and weights (ddtb only). Given alone, both start from it; with calibration or
    weight_range: percentile and if missing, it is the published one of the architecture."""
    weight_range: Annotated[str, _one_of(name for names in RANGES.values() for name in names)] | None = None
    """How the grid of a weight is found: learned (a factor on the step of least squared error trains; default),
    learned_per_channel (the same with a step for each output channel), learned_midrise (the same with levels at odd
    multiples of the step and none at 0; below 8 bits), mse (the step itself) or, as published, max (pams) or percentile
    (ddtb)."""
    limit_levels: bool = Field(default=default_of("limit_levels"), strict=True)
    """Clamp DDTB's codes to 2^k levels; the released code has one more where the bounds are symmetric (ddtb only)."""
    observed_weights: Annotated[str, _one_of(CHOICES["observed_weights"])] = default_of("observed_weights")
    """Whether weights are float or quantized while DDTB observes activations (ddtb only)."""
    feature: Annotated[str, Field(min_length=1)] | None = None
    """Module whose input SKT compares; the preset's if missing."""

    @field_validator("bits", "head", "tail", mode="before")
    @classmethod
    def _bits_in_range(cls, bits: Any, info: ValidationInfo) -> Any:
        key = str(info.field_name)
        if not isinstance(bits, Mapping):
            return None if bits is None and key != "bits" else check_bits(bits, name=key)
        if set(bits) != {"weight", "activation"}:
            raise OptionError(f"{key}: keys {listing(bits)} are not allowed; give both 'weight' and 'activation'")
        return {tensor: check_bits(width, name=f"{key}.{tensor}") for tensor, width in bits.items()}

    @field_validator("skip", mode="before")
    @classmethod
    def _skip_in_range(cls, bits: Any) -> Any:
        return None if bits is None else check_bits(bits, name="skip")

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
            raise OptionError("key 'bits' is missing; add it")
        for key in GATE_KEYS:
            if key in self.model_fields_set and self.quantizer != "ddtb":
                raise OptionError(f"{key}: {self.quantizer} has no gates; delete it, or set quantizer: ddtb")
        for key, names in (("calibration", CALIBRATIONS[self.quantizer]), ("weight_range", RANGES[self.quantizer])):
            if getattr(self, key) is not None:
                choice(key, getattr(self, key), names)
        if self.quantizer == "ddtb" and self.calibration_iters < 1:
            raise OptionError("calibration_iters: 0 leaves ddtb without an observation; give at least 1")
        for key, instead in BESIDE_CONFIG_LIST.items():
            if self.config_list is not None and key in self.model_fields_set:
                raise OptionError(f"{key}: it has no effect beside config_list; {instead}")
        if self.percentile is not None and self.calibration in ERROR_POWERS and self.weight_range in LEAST_ERROR:
            raise OptionError(
                f"percentile: calibration is {self.calibration} and weight_range {self.weight_range}; delete it, "
                "or one of them"
            )
        for key, switch in SWITCHES.items():
            given = key in self.model_fields_set and getattr(self, key) is not None
            if given and (switch.pams if self.quantizer == "pams" else switch.ddtb) is None:
                raise OptionError(f"{key}: {self.quantizer} has no such setting; delete it")
        return self

    def bits_of(self, target: str) -> int:
        """Return the bit width that ``bits`` gives a target; not for options with a config_list."""
        assert self.bits is not None
        return bits_of(self.bits, target)


def options_from(block: Mapping[str, Any]) -> QuantizationOptions:
    """Read a ``quantization:`` block.

    Raises:
        OptionError: one sentence that names the key, what was given and what is allowed.
    """
    if not isinstance(block, Mapping):
        raise OptionError(f"quantization: {block!r} is not a block; give at least 'quantizer' and 'bits' below it")
    try:
        given = apply_profile(block)
        return QuantizationOptions.model_validate(without_idle(given) if is_resolved(block) else given)
    except QuantizationError as error:
        raise OptionError(f"quantization: {error}") from None
    except ValidationError as error:
        raise OptionError(f"quantization: {sentence(error.errors()[0], QuantizationOptions)}") from None


def check_wiring(wiring: str) -> str:
    """Return ``wiring`` if it is known; raise a QuantizationError otherwise."""
    if wiring not in WIRINGS:
        raise QuantizationError(
            f"wiring: {wiring!r} is not known; give one of {', '.join(WIRINGS)}{did_you_mean(wiring, WIRINGS)}"
        )
    return wiring
