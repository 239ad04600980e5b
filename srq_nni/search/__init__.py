"""Bits for a budget: which convolution gets how many bits, measured on a few images before any training."""

from srq_nni.search.budget import Budget
from srq_nni.search.run import SearchResult, search_bits

__all__ = ["Budget", "SearchResult", "search_bits"]
