"""Models for BasicSR's registry: importing this package registers them."""

from srq_nni.models import quant_sr_model

__all__ = ["quant_sr_model"]
