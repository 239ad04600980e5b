"""Calibration: statistics of activations, kept in buffers of fixed shape, and what they decide.

All running statistics live in tensors that are updated in place, so that state dicts keep their shapes and a resumed
run continues where it stopped. With torch.distributed they are averaged over the ranks.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import distributed, nn

from srq_nni.errors import QuantizationError
from srq_nni.quantization.percentile import percentile_bounds

SUBSAMPLE = 2**18  # percentiles and DDTB's error search look at no more elements than this


class RunningMean(nn.Module):
    """Mean of the vectors given so far (float64 inside), equal on all ranks.

    Args:
        size: length of the vector.
    """

    mean: torch.Tensor
    count: torch.Tensor

    def __init__(self, size: int = 1) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(size, dtype=torch.float64))
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))

    def reset(self) -> None:
        """Forget what was given so far."""
        self.mean.zero_()
        self.count.zero_()

    @torch.no_grad()
    def update(self, value: torch.Tensor) -> None:
        """Add one vector (detached, averaged over ranks)."""
        self.count += 1
        self.mean += (mean_over_ranks(value.detach().to(self.mean)) - self.mean) / self.count


class IntensityRecorder(nn.Module):
    """Population variance, over batches, of the largest and the smallest activation (DDTB's dynamic intensity)."""

    mean: torch.Tensor
    squares: torch.Tensor
    count: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(2, dtype=torch.float64))
        self.register_buffer("squares", torch.zeros(2, dtype=torch.float64))
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))

    def reset(self) -> None:
        """Forget the batches so far."""
        self.mean.zero_()
        self.squares.zero_()
        self.count.zero_()

    @torch.no_grad()
    def update(self, smallest: torch.Tensor, largest: torch.Tensor) -> None:
        """Add the extremes of one batch (0-d tensors; the extremes over all ranks count)."""
        extremes = torch.stack([-smallest, largest]).to(self.mean)
        if _distributed():
            distributed.all_reduce(extremes, distributed.ReduceOp.MAX)
        self.count += 1
        delta = extremes - self.mean
        self.mean += delta / self.count
        self.squares += delta * (extremes - self.mean)

    @property
    def intensity(self) -> float:
        """Var_b(max) + Var_b(min), in squared units of the activation; 0 before the first batch."""
        return float(self.squares.sum() / self.count.clamp(min=1))


def choose_dynamic_layers(intensity: Mapping[str, float], ratio: float) -> list[str]:
    """Return the names of the ``int(len(intensity) * ratio)`` layers with the greatest intensity, greatest first.

    Raises:
        QuantizationError: if ``ratio`` is not in [0, 1].
    """
    if not 0.0 <= ratio <= 1.0:
        raise QuantizationError(f"dynamic ratio: {ratio!r} is not allowed; give a number from 0 to 1")
    ranked = sorted(intensity, key=lambda name: -intensity[name])
    return ranked[: int(len(ranked) * ratio)]


def check_finite(x: torch.Tensor) -> None:
    """Raise a QuantizationError for an empty tensor or one with NaN or infinity, which would spoil a statistic."""
    if x.numel() == 0:
        raise QuantizationError("an empty activation cannot be calibrated on; give images with at least one pixel")
    if not torch.isfinite(x).all():
        raise QuantizationError(
            "calibration met NaN or infinity in an activation; check the network's weights and the input images"
        )


def mean_sample_maximum(x: torch.Tensor) -> torch.Tensor:
    """Return the mean over samples (axis 0) of max|x| over the other axes, as a (1,) tensor (PAMS, section 1.2)."""
    return x.detach().abs().reshape(len(x) if x.ndim else 1, -1).amax(dim=1).mean().reshape(1)


def sampled_percentiles(x: torch.Tensor, percentile: float) -> torch.Tensor:
    """Return (lower, upper) percentiles of ``x`` as a (2,) tensor; of a regular sample if ``x`` is large."""
    return torch.stack(percentile_bounds(subsample(x.detach()), percentile))


def subsample(x: torch.Tensor, size: int = SUBSAMPLE) -> torch.Tensor:
    """Return ``x`` flattened, thinned regularly to at most ``size`` elements."""
    flat = x.flatten()
    return flat[:: -(-flat.numel() // size)] if flat.numel() > size else flat


def mean_over_ranks(value: torch.Tensor) -> torch.Tensor:
    """Average ``value`` over the ranks of torch.distributed, if it is in use."""
    if not _distributed():
        return value
    value = value.clone()
    distributed.all_reduce(value)
    return value / distributed.get_world_size()


@torch.no_grad()
def forget_statistics(model: nn.Module) -> None:
    """Let every quantizer of ``model`` start its statistics anew, in place; bounds stay."""
    for module in model.modules():
        if isinstance(module, RunningMean | IntensityRecorder):
            module.reset()


def average_batch_statistics(model: nn.Module) -> None:
    """Make the running statistics of every batch norm in ``model`` the mean over the ranks, in one exchange.

    DistributedDataParallel copies those of the first rank before the next step only, so that until then a validation or
    an average would see others on each rank. Call it after the backward pass, which checks that nobody wrote to them.
    """
    norms = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    running = [buffer for norm in norms for buffer in (norm.running_mean, norm.running_var) if buffer is not None]
    if not running or not _distributed():
        return
    mean = mean_over_ranks(torch.cat(running))
    for buffer, part in zip(running, mean.split([len(buffer) for buffer in running]), strict=True):
        buffer.copy_(part)


def _distributed() -> bool:
    return distributed.is_available() and distributed.is_initialized()
