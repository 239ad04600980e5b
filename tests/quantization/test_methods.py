"""The registry of methods: which quantizers a name stands for, with which options."""

from __future__ import annotations

import pytest
import torch

from srq_nni.errors import QuantizationError
from srq_nni.quantization.methods import METHODS, get_method


@pytest.mark.parametrize("name", METHODS)
def test_a_method_makes_its_quantizers_with_its_default_options(name: str, photographs: torch.Tensor) -> None:
    method = get_method(name)
    assert method.name == name
    activation = method.activation(4, **method.activation_options)
    assert activation.bits == 4
    for option, default in method.activation_options.items():
        assert getattr(activation, option) == default == getattr(method.activation(4), option)
    weight = method.weight(4, **method.weight_options)
    assert weight.bits == 4 and weight(photographs).shape == photographs.shape


def test_an_unknown_method_is_refused() -> None:
    with pytest.raises(QuantizationError) as error:
        get_method("pam")
    assert str(error.value) == "quantizer: 'pam' is not known; give one of pams, ddtb; did you mean 'pams'?"
