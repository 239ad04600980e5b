"""Which of BasicSR's models a ``QuantSRModel`` extends: the key ``base_model``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from basicsr.models.sr_model import SRModel
from basicsr.models.srgan_model import SRGANModel
from basicsr.utils.registry import ARCH_REGISTRY, MODEL_REGISTRY

from srq_nni.errors import OptionError, did_you_mean
from srq_nni.models.rules import known, need

DEFAULT_BASE = "SRModel"
SUFFIX = "_basicsr"  # under which BasicSR registers what Real-ESRGAN registers as well
ON_GPU_ONLY = ("RealESRNetModel", "RealESRGANModel")  # they put their JPEG simulation on the GPU, whatever num_gpu says


class NetworkBlock(dict[str, Any]):
    """The ``network_g`` block of a quantized network, through which a base model still reads that of the float one.

    ``SwinIRModel`` for one takes ``window_size`` from it.
    """

    def __missing__(self, key: str) -> Any:
        return self["base"][key]

    def get(self, key: str, default: Any = None) -> Any:
        return self[key] if key in self else self["base"].get(key, default)


def find_base_model(name: Any, excluded: type | None = None) -> type[SRModel]:
    """Return the registered model called ``name``.

    Args:
        name: value of ``base_model``.
        excluded: class whose subclasses are no base, since they are quantized already.

    Raises:
        OptionError: if there is none, or it does not derive from ``SRModel``.
    """
    registered = {str(key).removesuffix(SUFFIX): model for key, model in MODEL_REGISTRY}
    registered |= {key: model for key, model in MODEL_REGISTRY if not key.endswith(SUFFIX)}
    allowed = {key: model for key, model in registered.items() if _is_base(model, excluded)}
    wanted = str(name).removesuffix(SUFFIX)
    if wanted in allowed:
        return allowed[wanted]
    near = did_you_mean(wanted, allowed)
    if wanted in registered:
        raise OptionError(
            f"base_model: {name!r} does not train one network as SRModel does; "
            f"give a model that derives from SRModel: {', '.join(allowed)}"
        )
    raise OptionError(f"base_model: {name!r} is not known; give one of {', '.join(allowed)}{near}")


def _is_base(model: type, excluded: type | None) -> bool:
    return issubclass(model, SRModel) and not (excluded is not None and issubclass(model, excluded))


def check_base_model(opt: Mapping[str, Any], *, quantized: bool, is_train: bool) -> None:
    """Check ``base_model`` and the keys that this base needs.

    Args:
        opt: all options of a run.
        quantized: whether ``model_type`` is a ``QuantSRModel``.
        is_train: whether the run trains.

    Raises:
        OptionError: one sentence that names the key.
    """
    if not quantized:
        if "base_model" in opt:
            raise OptionError(
                f"base_model: the key is given but model_type is '{opt['model_type']}', which ignores it; "
                "set model_type: QuantSRModel, or delete the key"
            )
        return
    base = find_base_model(opt.get("base_model", DEFAULT_BASE), excluded=MODEL_REGISTRY.get("QuantSRModel"))
    name = base.__name__
    if name in ON_GPU_ONLY and not torch.cuda.is_available():
        raise OptionError(f"base_model: {name} simulates JPEG on a GPU and this machine has none; train it on one")
    if name == "SwinIRModel" and "window_size" not in opt["network_g"]:
        raise OptionError(
            "base_model: SwinIRModel pads images to network_g: window_size, which is missing; "
            "add it, or delete base_model"
        )
    if is_train and issubclass(base, SRGANModel):
        for block, keys in (("network_d", ()), ("optim_d", ("lr",)), ("gan_opt", ())):
            where = block if block == "network_d" else f"train: {block}"
            given = opt.get(block) if block == "network_d" else opt["train"].get(block)
            if given is None:
                raise OptionError(f"{where} is missing, and base_model: {name} trains a discriminator; add it")
            need(where, given, ["type", *keys])
        architectures = [(str(key).removesuffix(SUFFIX), None) for key, _ in ARCH_REGISTRY]
        known("network_d: type", str(opt["network_d"]["type"]).removesuffix(SUFFIX), architectures)
