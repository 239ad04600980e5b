"""Which of BasicSR's models a ``QuantSRModel`` extends: the key ``base_model``."""

from __future__ import annotations

from typing import Any

from basicsr.models.sr_model import SRModel
from basicsr.utils.registry import MODEL_REGISTRY

from srq_nni.errors import OptionError, did_you_mean

DEFAULT_BASE = "SRModel"
SUFFIX = "_basicsr"  # under which BasicSR registers what Real-ESRGAN registers as well


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
