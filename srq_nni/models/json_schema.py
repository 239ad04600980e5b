"""The JSON schema of option files, which editors read: the models of ``schema`` and what depends on the registries."""

from __future__ import annotations

from typing import Any

from basicsr.utils.registry import ARCH_REGISTRY, DATASET_REGISTRY, LOSS_REGISTRY, METRIC_REGISTRY, MODEL_REGISTRY

from srq_nni.compression.presets import PRESETS
from srq_nni.compression.profiles import SWITCHES
from srq_nni.models.base import SUFFIX
from srq_nni.models.schema import OptionFile
from srq_nni.quantization.methods import METHODS

DIALECT = "https://json-schema.org/draft/2020-12/schema"


def json_schema() -> dict[str, Any]:
    """Return the JSON schema of option files, for editors and other tools."""
    schema = OptionFile.model_json_schema()
    definitions = schema["$defs"]
    for part in (schema, *definitions.values()):
        for entry in (part, *part.get("properties", {}).values()):
            entry.pop("title", None)
            if "description" in entry:
                entry["description"] = " ".join(entry["description"].split())
    for block, key, registry in (
        (schema, "model_type", MODEL_REGISTRY),
        (schema, "base_model", MODEL_REGISTRY),
        (definitions["Network"], "type", ARCH_REGISTRY),
        (definitions["Dataset"], "type", DATASET_REGISTRY),
        (definitions["Typed"], "type", LOSS_REGISTRY),
        (definitions["Metric"], "type", METRIC_REGISTRY),
    ):
        entry = block["properties"][key]
        entry.pop("type")
        entry["anyOf"] = [{"enum": _names(registry)}, {"type": "string", "minLength": 1}]  # suggested, not exhaustive
    definitions["QuantizationOptions"]["allOf"] = _of_each_quantizer()
    stock = [name for name in _names(MODEL_REGISTRY) if name != "QuantSRModel"]
    schema["allOf"] = [
        {
            "if": {"properties": {"model_type": {"const": "QuantSRModel"}}, "required": ["model_type"]},
            "then": {"required": ["quantization"], "properties": {"quantization": {"type": "object"}}},
        },
        {
            "if": {"properties": {"model_type": {"enum": stock}}, "required": ["model_type"]},
            "then": {"properties": {"quantization": False, "base_model": False}},
        },
    ]
    return {"$schema": DIALECT, "title": "Option file of BasicSR with srq-nni", **schema}


def _names(registry: Any) -> list[str]:
    """Return what BasicSR and this package register, whatever else is registered meanwhile."""
    own = (name for name, found in registry if found.__module__.split(".")[0] in ("basicsr", "srq_nni"))
    aliases = [f"{method.upper()}_{architecture}" for method in METHODS for architecture in PRESETS]
    others = {name.removesuffix(SUFFIX) for name in own} - {"QuantizedNetwork", *aliases}
    return sorted(others) + (aliases if registry is ARCH_REGISTRY else [])


def _of_each_quantizer() -> list[dict[str, Any]]:
    """Return what only one of the quantizers takes, as conditions of the schema."""
    conditions: list[dict[str, Any]] = []
    for name, method in METHODS.items():
        rules: dict[str, Any] = {
            key: False for key, switch in SWITCHES.items() if (switch.pams if name == "pams" else switch.ddtb) is None
        }
        calibrations = [*method.activation.CALIBRATIONS]  # type: ignore[attr-defined]
        rules["calibration"] = {"enum": [*calibrations, None]}
        rules["weight_range"] = {"enum": [*method.weight.RANGES, None]}  # type: ignore[attr-defined]
        conditions.append({"if": {"properties": {"quantizer": {"const": name}}}, "then": {"properties": rules}})
    conditions[-1]["then"]["properties"]["calibration_iters"] = {"minimum": 1}
    return [*conditions, {"anyOf": [{"required": ["bits"]}, {"required": ["config_list"]}]}]
