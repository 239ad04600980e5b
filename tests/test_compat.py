"""The shims for BasicSR 1.4.2: harmless when repeated, and each cures the symptom it is there for."""

from __future__ import annotations

import sys

import pytest
import torch

from srq_nni import compat


def test_prepare_is_idempotent() -> None:
    compat.prepare()
    first = sys.modules.get("torchvision.transforms.functional_tensor")
    compat.prepare()
    assert sys.modules.get("torchvision.transforms.functional_tensor") is first
    from torchvision.transforms.functional_tensor import rgb_to_grayscale

    gray = rgb_to_grayscale(torch.ones(3, 2, 2))
    assert gray.shape == (1, 2, 2)


def test_an_alias_is_made_once_and_only_where_a_module_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "json.gone", raising=False)
    compat._alias_module("json.gone", "json.decoder")
    alias = sys.modules.pop("json.gone")
    assert alias.JSONDecoder is sys.modules["json.decoder"].JSONDecoder
    compat._alias_module("json.encoder", "json.decoder")
    assert hasattr(sys.modules["json.encoder"], "JSONEncoder")


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (["-opt", "x.yml", "--local-rank=0"], ["-opt", "x.yml", "--local_rank=0"]),
        (["--local-rank", "3"], ["--local_rank", "3"]),
        (["--local_rank=1", "--launcher", "pytorch"], ["--local_rank=1", "--launcher", "pytorch"]),
        (["-opt", "my--local-rank.yml"], ["-opt", "my--local-rank.yml"]),
        ([], []),
    ],
)
def test_the_launchers_rank_is_spelt_as_basicsr_reads_it(given: list[str], expected: list[str]) -> None:
    before = list(given)
    assert compat.normalise_argv(given) == expected
    assert given == before
