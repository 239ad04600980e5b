"""Float networks that are easier to quantize: the same function, other bases of the tensors inside."""

from srq_nni.equalization.fit import Equalized, equalize

__all__ = ["Equalized", "equalize"]
