"""Names of the tensors of a module that can be quantized, as NNI spells them: ``weight``, ``_input_0``, ``_output_0``.

``_input_1`` is the second argument of ``forward``, ``_input_skip`` the one called ``skip``; ``_output_1`` is the second
item of a tuple. ``_input_`` and ``_output_`` mean the first.
"""

from __future__ import annotations

import inspect
import re

from torch import nn

from srq_nni.errors import QuantizationError, did_you_mean, listing

WEIGHT, INPUT, OUTPUT = "weight", "_input_0", "_output_0"
INPUT_PREFIX, OUTPUT_PREFIX = "_input_", "_output_"
LAYERS_WITH_WEIGHTS = (nn.Conv2d, nn.Linear)
_QUANTIZER_NAME = re.compile(r"(weight|input|output|input_\d+|output_\d+)_quantizer")


def canonical_target(module: nn.Module, target: str, where: str = "") -> str:
    """Return ``target`` with the position of the argument: ``_input_`` and ``_input_x`` of a convolution: ``_input_0``.

    Args:
        module: module whose ``forward`` has the argument.
        target: as in a config_list.
        where: name of the module, for the message.

    Raises:
        QuantizationError: if ``module`` has no such tensor, or it is one that no quantizer takes.
    """
    name = f"'{where}' ({type(module).__name__})" if where else f"{type(module).__name__}"
    if target == WEIGHT:
        if not isinstance(module, LAYERS_WITH_WEIGHTS):
            raise QuantizationError(
                f"target 'weight' of module {name} cannot be quantized; only those of nn.Conv2d and nn.Linear can"
            )
        return WEIGHT
    if target.startswith(INPUT_PREFIX):
        return INPUT_PREFIX + str(_input_position(module, target.removeprefix(INPUT_PREFIX), target, name))
    if target.startswith(OUTPUT_PREFIX) and (target == OUTPUT_PREFIX or target.removeprefix(OUTPUT_PREFIX).isdecimal()):
        return OUTPUT_PREFIX + (target.removeprefix(OUTPUT_PREFIX) or "0")
    if target == "bias":
        raise QuantizationError(
            f"target 'bias' of module {name} stays in floating point; delete it (export can put it on the "
            "accumulator's grid)"
        )
    known = [WEIGHT, INPUT, OUTPUT]
    raise QuantizationError(
        f"target '{target}' of module {name} is not known; give one of {', '.join(known)}{did_you_mean(target, known)}"
    )


def input_names(module: nn.Module) -> list[str]:
    """Return the names of the positional arguments of ``module.forward``."""
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    parameters = inspect.signature(type(module).forward).parameters.values()
    return [parameter.name for parameter in parameters if parameter.kind in kinds][1:]


def _input_position(module: nn.Module, given: str, target: str, name: str) -> int:
    names = input_names(module)
    if not given or (given.isdecimal() and int(given) < max(len(names), 1)):
        return int(given or 0)
    if given in names:
        return names.index(given)
    near = "" if given.isdecimal() else did_you_mean(given, names)
    raise QuantizationError(
        f"target '{target}' of module {name} does not exist; its forward has the inputs "
        f"{listing([f'_input_{i} ({argument})' for i, argument in enumerate(names)])}{near}"
    )


def quantizer_name(target: str) -> str:
    """Return the name of the child module that quantizes a canonical target: ``input_quantizer`` for ``_input_0``."""
    return f"{target.strip('_').removesuffix('_0')}_quantizer"


def is_quantizer_name(name: str) -> bool:
    """Whether ``name``, one part of a state-dict key, is that of a quantizer."""
    return _QUANTIZER_NAME.fullmatch(name) is not None
