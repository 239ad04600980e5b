"""Bars for what a run does in silence: calibration, whose losses say little, and validation."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from srq_nni.progress import Reported, track


@contextmanager
def shown() -> Iterator[None]:
    """Let BasicSR's pipelines show them in this block; nothing is written where there is no terminal."""
    import basicsr.test
    import basicsr.train

    modules = (basicsr.train, basicsr.test)
    originals = [module.build_model for module in modules]
    for module, build in zip(modules, originals, strict=True):
        module.build_model = _with_bars(build)
    try:
        yield
    finally:
        for module, build in zip(modules, originals, strict=True):
            module.build_model = build


def _with_bars(build: Callable[[dict[str, Any]], Any]) -> Callable[[dict[str, Any]], Any]:
    def build_model(opt: dict[str, Any]) -> Any:
        model = build(opt)
        validate = model.validation

        def validation(dataloader: Any, *args: Any, **settings: Any) -> None:
            if not opt["val"].get("pbar"):
                dataloader = track(dataloader, f"Validating {dataloader.dataset.opt['name']}", "image")
            validate(dataloader, *args, **settings)

        model.validation = validation
        if opt["is_train"] and hasattr(model, "quantization"):
            model.optimize_parameters = _calibrating(model.optimize_parameters, model.quantization.calibration_iters)
        return model

    return build_model


def _calibrating(step: Callable[[int], None], iterations: int) -> Callable[[int], None]:
    shown = Reported("Calibrating", "iteration")

    def optimize_parameters(current_iter: int) -> None:
        shown(current_iter - 1, iterations)
        step(current_iter)
        shown(current_iter, iterations)

    return optimize_parameters
