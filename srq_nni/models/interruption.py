"""Ctrl-C and SIGTERM while training: the iteration ends, its state is saved, and a sentence says how to go on.

The state is that of a regular checkpoint, so a resumed run ends with the bits of one that was never stopped. A second
signal stops at once. Several processes, which would stop at different iterations, keep the default: they end, and go on
from the last regular checkpoint.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from srq_nni.errors import Stopped

SIGNALS = (signal.SIGINT, signal.SIGTERM)
PATCHED = ("build_model", "EnlargedSampler", "init_tb_loggers")


@contextmanager
def resumable(command: str) -> Iterator[None]:
    """Let BasicSR's ``train_pipeline`` end so in this block; a ``KeyboardInterrupt`` becomes a ``Stopped``.

    Args:
        command: command line that continues the run.
    """
    import basicsr.train

    run = _Run(command)
    handlers = {number: signal.getsignal(number) for number in SIGNALS}
    originals = {name: getattr(basicsr.train, name) for name in PATCHED}
    basicsr.train.build_model = run.watched(basicsr.train.build_model)
    basicsr.train.EnlargedSampler = run.kept(basicsr.train.EnlargedSampler, "sampler")
    basicsr.train.init_tb_loggers = run.kept(basicsr.train.init_tb_loggers, "curves")
    try:
        yield
    except Stopped:
        raise
    except KeyboardInterrupt:
        raise Stopped(run.sentence_of_a_sudden_end(), 128 + (run.signal or signal.SIGINT)) from None
    except RuntimeError:
        if run.signal is None:
            raise
        raise Stopped(
            run.sentence_of_a_sudden_end(), 128 + run.signal
        ) from None  # a process that loads data died of it
    finally:
        for name, original in originals.items():
            setattr(basicsr.train, name, original)
        for number in run.listening:
            signal.signal(number, handlers[number])


class _Run:
    """What is known of the run when a signal comes."""

    def __init__(self, command: str) -> None:
        self.command = command
        self.process = os.getpid()
        self.signal: int | None = None
        self.listening: tuple[signal.Signals, ...] = ()
        self.between_steps = False  # the state is whole, however long validation still takes
        self.opt: dict[str, Any] = {}
        self.sampler: Any = None
        self.curves: Any = None

    def kept(self, make: Callable[..., Any], name: str) -> Callable[..., Any]:
        """Return ``make``, whose result is remembered as ``name``."""

        def maker(*args: Any, **settings: Any) -> Any:
            setattr(self, name, make(*args, **settings))
            return getattr(self, name)

        return maker

    def watched(self, build: Callable[[dict[str, Any]], Any]) -> Callable[[dict[str, Any]], Any]:
        """Return ``build_model`` for a model that looks for a signal before each iteration and while it validates."""

        def build_model(opt: dict[str, Any]) -> Any:
            model = build(opt)
            self.opt = opt
            if opt["dist"] or threading.current_thread() is not threading.main_thread():
                return model
            update, validate = model.update_learning_rate, model.validation

            def update_learning_rate(current_iter: int, **settings: Any) -> None:
                if self.signal is not None:
                    self.stop(model, current_iter - 1)
                update(current_iter, **settings)

            def validation(dataloader: Any, current_iter: int, *args: Any, **settings: Any) -> None:
                self.between_steps = True
                try:
                    if self.signal is not None:
                        raise KeyboardInterrupt
                    validate(dataloader, current_iter, *args, **settings)
                except KeyboardInterrupt:
                    self.stop(model, current_iter)
                finally:
                    self.between_steps = False

            model.update_learning_rate, model.validation = update_learning_rate, validation
            self.listening = tuple(number for number in SIGNALS if signal.getsignal(number) is not signal.SIG_IGN)
            for number in self.listening:
                signal.signal(number, self.notice)
            return model

        return build_model

    def notice(self, number: int, frame: Any) -> None:
        """Handle a signal."""
        if os.getpid() != self.process:  # a process that loads data: its parent decides
            if number == signal.SIGTERM:
                os._exit(128 + number)
            return
        again, self.signal = self.signal is not None, number
        if again or self.between_steps:
            raise KeyboardInterrupt

    def stop(self, model: Any, finished: int) -> None:
        """Save the state after iteration ``finished`` and end the run."""
        self.between_steps = False
        status = 128 + (self.signal or signal.SIGINT)
        if finished > self.opt["train"]["total_iter"]:
            raise Stopped("stopped after the last iteration; the trained network is saved", status)
        if finished < 1:
            raise Stopped("stopped before the first iteration; nothing was trained yet", status)
        model.save(self.sampler.epoch, finished)
        if self.curves is not None:
            self.curves.flush()
        raise Stopped(f"stopped after iteration {finished}, which is saved; continue with: {self.command}", status)

    def sentence_of_a_sudden_end(self) -> str:
        """Say what a run that was stopped in the middle of something can go on from."""
        folder = Path(self.opt["path"]["training_states"]) if self.opt else None
        if folder is not None and any(folder.glob("*.state")):
            return f"stopped; continue from the last saved state with: {self.command}"
        return "stopped before a state was saved; the same command starts again"
