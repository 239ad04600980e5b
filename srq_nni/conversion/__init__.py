"""Conversion of checkpoints between EDSR-PyTorch, PAMS, DDTB and this package, in both directions."""

from srq_nni.conversion.incoming import convert
from srq_nni.conversion.official import SOURCES
from srq_nni.conversion.outgoing import convert_back
from srq_nni.conversion.report import Conversion

__all__ = ["SOURCES", "Conversion", "convert", "convert_back"]
