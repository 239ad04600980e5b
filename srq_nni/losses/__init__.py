"""Losses for BasicSR's registry: importing this package registers them."""

from srq_nni.losses import skt_loss

__all__ = ["skt_loss"]
