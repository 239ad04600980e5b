"""An evaluator of NNI for a training loop that its user owns: BasicSR's, or one in plain PyTorch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from nni.compression.utils.evaluator import Evaluator
from torch import nn
from torch.optim import Optimizer

from srq_nni.errors import QuantizationError

Train = Callable[[nn.Module, "LoopEvaluator", int | None, int | None], Any]


class LoopEvaluator(Evaluator):
    """Lets NNI's compressors take part in a loop without rebuilding its optimizer; nothing needs ``nni.trace``.

    The loop calls ``watch`` once, with its optimizer and before it makes a scheduler, and ``loss`` in every step::

        def train(model, evaluator, max_steps, max_epochs):
            optimizer = evaluator.watch(torch.optim.Adam(model.parameters(), lr=1e-4))
            for batch in islice(batches, max_steps):
                optimizer.zero_grad()
                evaluator.loss(criterion(model(batch["lq"]), batch["gt"]), batch).backward()
                optimizer.step()

    Args:
        train: ``train(model, evaluator, max_steps, max_epochs)``; ``compress`` calls it.
        evaluate: ``evaluate(model)`` returns the metric, for compressors that ask for one.
        dummy_input: input of the network, for compressors that trace it.
    """

    def __init__(
        self, train: Train, evaluate: Callable[[nn.Module], Any] | None = None, dummy_input: Any = None
    ) -> None:
        self._train, self._evaluate, self._dummy_input = train, evaluate, dummy_input
        self._initialization_complete = False
        self._model: nn.Module | None = None
        self._on_watch: list[Callable[[Optimizer], None]] = []
        self._bound_hooks: list[Any] = []
        self._groups: list[dict[str, list[torch.Tensor]]] = []
        self._loss_patches: list[Callable[[torch.Tensor, Any], torch.Tensor]] = []
        self._step_tasks: list[tuple[list[Callable[[], Any]], list[Callable[[], Any]]]] = []

    # What the loop calls.

    def watch(self, optimizer: Optimizer) -> Optimizer:
        """Give the optimizer the parameters and tasks that the compressors ask for; return it."""
        for add in self._on_watch:
            add(optimizer)
        for groups in self._groups:
            assert self._model is not None
            self._optimizer_add_param_group(self._model, groups, optimizer)
        self._bound_hooks += [
            optimizer.register_step_pre_hook(lambda *_: self._run(0)),
            optimizer.register_step_post_hook(lambda *_: self._run(1)),
        ]
        return optimizer

    def loss(self, loss: torch.Tensor, batch: Any) -> torch.Tensor:
        """Return the loss with what the compressors add to it, such as a distiller's."""
        for patch in self._loss_patches:
            loss = patch(loss, batch)
        return loss

    def _run(self, after: int) -> None:
        for tasks in self._step_tasks:
            for task in tasks[after]:
                task()

    # What NNI's compressors call.

    def when_watched(self, add: Callable[[Optimizer], None]) -> None:
        """Call ``add`` with each optimizer that the loop lets this evaluator watch."""
        self._on_watch.append(add)

    def _init_optimizer_helpers(self, pure_model: nn.Module) -> None:
        self._initialization_complete = True

    def bind_model(self, model: nn.Module, param_names_map: dict[str, str] | None = None) -> None:
        """Take the wrapped network that ``train`` gets."""
        self._model = model

    def unbind_model(self) -> None:
        """Forget the network and all patches; the parameters an optimizer was given stay there."""
        self.revert_loss()
        self.revert_optimizer_step()
        self.remove_all_hooks()
        for hook in self._bound_hooks:
            hook.remove()
        self._bound_hooks, self._groups, self._model = [], [], None

    def patch_optim_param_group(self, module_name_param_dict: dict[str, list[torch.Tensor]] | None = None) -> None:
        """Add parameters to the group of their module, when the loop shows its optimizer."""
        self._groups.append(module_name_param_dict or {})

    def patch_loss(self, patch: Callable[[torch.Tensor, Any], torch.Tensor]) -> None:
        """Let ``patch(loss, batch)`` change the loss."""
        self._loss_patches.append(patch)

    def revert_loss(self) -> None:
        """Undo all ``patch_loss``."""
        self._loss_patches = []

    def patch_optimizer_step(
        self, before_step_tasks: list[Callable[[], Any]], after_step_tasks: list[Callable[[], Any]]
    ) -> None:
        """Run tasks before and after each step of the watched optimizers."""
        self._step_tasks.append((list(before_step_tasks), list(after_step_tasks)))

    def revert_optimizer_step(self) -> None:
        """Undo all ``patch_optimizer_step``."""
        self._step_tasks = []

    def train(self, max_steps: int | None = None, max_epochs: int | None = None) -> None:
        """Run the loop."""
        if self._model is None:
            raise QuantizationError("evaluator: no network is bound; call a compressor's compress(), which binds it")
        self._train(self._model, self, max_steps, max_epochs)

    def finetune(self) -> None:
        """Run the loop for as long as it wants."""
        self.train()

    def evaluate(self) -> Any:
        """Return the metric of the bound network, or None without an ``evaluate`` function."""
        return None if self._evaluate is None or self._model is None else self._evaluate(self._model)

    def get_dummy_input(self) -> Any:
        """Return the input to trace the network with, or None."""
        return self._dummy_input
