"""``srq train``: BasicSR's training pipeline with srq_nni's networks, losses and models registered."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from srq_nni.cli import pipeline
from srq_nni.cli.main import exit_with


def main(argv: Sequence[str]) -> None:
    """Train as the option file says; ``argv`` without the command's name."""
    from basicsr.train import train_pipeline

    pipeline.run("train", argv, train_pipeline, is_train=True)


if __name__ == "__main__":
    exit_with(main, sys.argv[1:])
