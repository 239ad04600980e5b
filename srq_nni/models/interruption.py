"""Ctrl-C and SIGTERM while training: the iteration ends, its state is saved, and a sentence says how to go on.

The state is that of a regular checkpoint, so a resumed run ends with the bits of one that was never stopped. A second
signal stops at once. Several processes agree on the iteration, one after that of the signal; a second signal changes
nothing there, since torchrun sends one more than the terminal, and kills after half a minute.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from srq_nni.errors import Stopped
from srq_nni.models.agreement import Agreement

SIGNALS = (signal.SIGINT, signal.SIGTERM)
PATCHED = ("build_model", "EnlargedSampler", "init_tb_loggers")


@contextmanager
def resumable(command: str) -> Iterator[None]:
    """Let BasicSR's ``train_pipeline`` end so in this block; a ``KeyboardInterrupt`` becomes a ``Stopped``.

    Args:
        command: what continues the run, such as a command line.
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
        self.agreement: Agreement | None = None  # of several processes

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
            if threading.current_thread() is not threading.main_thread():
                return model
            if opt["dist"]:
                self.agreement = Agreement()
            update, validate = model.update_learning_rate, model.validation

            def update_learning_rate(current_iter: int, **settings: Any) -> None:
                if self.is_to_stop():
                    self.stop(model, current_iter - 1)
                update(current_iter, **settings)

            def validation(dataloader: Any, current_iter: int, *args: Any, **settings: Any) -> None:
                self.between_steps = self.agreement is None or _validates_alone(model)
                try:
                    if self.between_steps and self.signal is not None:
                        raise KeyboardInterrupt
                    validate(dataloader, current_iter, *args, **settings)
                except KeyboardInterrupt:
                    if self.agreement is None or current_iter > opt["train"]["total_iter"]:
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
        if self.between_steps or (again and self.agreement is None):
            raise KeyboardInterrupt

    def is_to_stop(self) -> bool:
        """Whether a signal came, here or to one of the other processes; these are asked at each iteration."""
        if self.agreement is None:
            return self.signal is not None
        agreed = self.agreement.reached(self.signal or 0)
        if agreed:
            self.signal = agreed
        return bool(agreed)

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
        if self.agreement is not None:
            self.agreement.meet()  # the launcher ends them all with the first
            if self.opt["rank"]:
                sys.exit(status)
        raise Stopped(f"stopped after iteration {finished}, which is saved; continue with: {self.command}", status)

    def sentence_of_a_sudden_end(self) -> str:
        """Say what a run that was stopped in the middle of something can go on from."""
        folder = Path(self.opt["path"]["training_states"]) if self.opt else None
        if folder is not None and any(folder.glob("*.state")):
            return f"stopped; continue from the last saved state with: {self.command}"
        return "stopped before a state was saved; the same command starts again"


def _validates_alone(model: Any) -> bool:
    """Whether the first of several processes validates without the others, and may stop in the middle."""
    from basicsr.models.sr_model import SRModel

    return getattr(type(model), "dist_validation", None) is SRModel.dist_validation
