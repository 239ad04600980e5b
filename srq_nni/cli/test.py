"""``srq test``: BasicSR's test pipeline with srq_nni's networks and models registered."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from srq_nni.cli import pipeline
from srq_nni.cli.main import exit_with


def main(argv: Sequence[str]) -> None:
    """Test as the option file says; ``argv`` without the command's name."""
    from basicsr.test import test_pipeline

    pipeline.run("test", argv, test_pipeline, is_train=False)


if __name__ == "__main__":
    exit_with(main, sys.argv[1:])
