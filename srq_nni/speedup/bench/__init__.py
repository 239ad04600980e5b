"""Speed of a network on the engines, with bfloat16 beside INT8 and the difference to the integer simulator."""

from srq_nni.speedup.bench.measure import benchmark, difference, photograph
from srq_nni.speedup.bench.report import BenchReport, Difference, Row

__all__ = ["BenchReport", "Difference", "Row", "benchmark", "difference", "photograph"]
