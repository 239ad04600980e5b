"""An NNI experiment whose tuner runs in this process.

NNI starts its tuner as a process of its own, and its manager gives it ten seconds to import NNI and to connect. A busy
machine needs longer, and the experiment then ends before its first trial. NNI's architecture search has its tuner in
the caller's process, and so has this: it connects after the manager has started and before the experiment does, so that
nothing waits for it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from threading import Thread
from typing import Any

from nni.algorithms.hpo.gridsearch_tuner import GridSearchTuner
from nni.experiment import Experiment, launcher
from nni.runtime.msg_dispatcher import MsgDispatcher

START = 120  # seconds that the manager, a Node.js program, may take; NNI gives it three


class TunedHere(Experiment):
    """NNI's experiment with a grid search in this process."""

    def _start_nni_manager(self, port: int, *args: Any, **settings: Any) -> None:
        channel = f"ws://localhost:{port}/tuner"
        debug, run_mode, _, tags = args
        with _connected_at_start(channel):
            super()._start_nni_manager(port, debug, run_mode, channel, tags, **settings)

    @property
    def is_alive(self) -> bool:
        """Whether the manager's process runs."""
        return self._proc is not None and self._proc.poll() is None


@contextmanager
def _connected_at_start(channel: str) -> Iterator[None]:
    """Let NNI's launcher, as soon as the manager answers, connect the tuner."""
    check = launcher._check_rest_server

    def check_and_connect(port: int, **settings: Any) -> None:
        check(port, retry=START, **settings)
        dispatcher = MsgDispatcher(channel, GridSearchTuner())
        Thread(target=dispatcher.run, name="NNI's tuner", daemon=True).start()

    launcher._check_rest_server = check_and_connect
    try:
        yield
    finally:
        launcher._check_rest_server = check
