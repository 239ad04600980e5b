"""When a quantizer calibrates, trains its bounds and opens its gates, in a training loop that others own.

BasicSR tells its model the number of the iteration. NNI's loops do not, so the clock counts the steps of the optimizer
that trains the bounds: whoever runs the loop, the phases are those of ``phase_at``, and the count is part of the state.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import distributed, nn
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook
from torch.utils.hooks import RemovableHandle

from srq_nni.compression.bounds import RelativeSteps
from srq_nni.compression.options import QuantizationOptions
from srq_nni.compression.phases import (
    Phase,
    enter_phase,
    gate_loss,
    gate_parameters,
    phase_at,
    start_bounds_and_gates,
    start_observing,
)
from srq_nni.errors import CheckpointError, QuantizationError
from srq_nni.quantization.calibration import average_batch_statistics
from srq_nni.quantization.layers import add_stored_gates, bounds_of, set_mode

UNTRAINED_STEPS = 3  # optimizer steps without one of the bounds before it is taken for a mistake
GATE_GROUP = "gates"
# Clocks that optimizers tell of their steps, in the order in which they began to listen.
_LISTENING: weakref.WeakKeyDictionary[TrainingClock, None] = weakref.WeakKeyDictionary()
_HOOKS: list[RemovableHandle] = []  # of all optimizers, at most one before and one after a step


class TrainingClock:
    """Drives the quantizers of one compressor through their phases.

    Args:
        model: the wrapped network.
        quantizers: activation quantizers and weight quantizers that this clock drives.
        gate_ratio: share of activation quantizers that get a gate, of those that have no share of their own (DDTB).
        options: method and lengths of the phases.
        owner_names: names of the quantized modules. A pass starts with the outermost module around all of them that is
            called: the network, or a part of it where a LightningModule calls that.
        owner: wrapper that gets the int64 buffer ``step``, so that the count is part of the network's state.
        step: name of that buffer.
        seed: of the gates' first weights.

    Attributes:
        steps: turns the optimizer's steps of the bounds into relative ones, if set.
        watch: called with the number of steps that have ended, if set.
    """

    def __init__(
        self,
        model: nn.Module,
        quantizers: Sequence[nn.Module],
        gate_ratio: float,
        options: QuantizationOptions,
        owner_names: Sequence[str],
        owner: nn.Module,
        step: str,
        seed: int,
    ) -> None:
        self.model, self.options, self.gate_ratio, self.seed = model, options, gate_ratio, seed
        self._callable = _ancestors(model, owner_names)
        self._running: nn.Module | None = None  # the outermost of them, during its forward pass
        self.quantizers = nn.ModuleList(quantizers)
        self.phase: Phase | None = None
        self.count = 0  # what the buffer holds, on the host
        self.steps: RelativeSteps | None = None
        self.watch: Callable[[int], None] | None = None
        self._owner, self._step = owner, step
        owner.register_buffer(step, torch.zeros((), dtype=torch.int64))
        self._in_training: list[nn.Module] = []  # modules to put back into training after an observation
        self._gates_without_ddp = False
        self._untrained_steps = 0
        self._removers: list[Callable[[], None]] = []

    def install(self) -> None:
        """Listen to the network and to optimizers."""
        if self._removers:
            return
        before, after = _Listener(self, "_before_forward"), _Listener(self, "_after_forward")
        load, loaded = _Listener(self, "_before_load"), _Listener(self, "_after_load")
        handles = [
            *(module.register_forward_pre_hook(before) for module in self._callable),
            *(module.register_forward_hook(after, always_call=True) for module in self._callable),
            self.model.register_load_state_dict_pre_hook(load),
            self.model.register_load_state_dict_post_hook(loaded),
        ]
        self._removers = [weakref.finalize(self, handle.remove) for handle in handles]
        _listen_to_optimizers(self)

    def remove(self) -> None:
        """Stop listening."""
        for remove in self._removers:
            remove()
        self._removers = []
        _LISTENING.pop(self, None)

    def enter(self, iteration: int) -> None:
        """Put the quantizers into the phase of an iteration, counted from 1."""
        self.phase = phase_at(iteration, self.options)
        if self.options.quantizer == "ddtb" and iteration == self.options.calibration_iters + 1:
            self._start_gates()
        enter_phase(self.quantizers, self.phase)

    def finish(self) -> None:
        """Go to the last phase, as after an update from a calibration_config."""
        # At least one step behind the observation, or the next one would start bounds and gates anew.
        self.count = max(self.count, self.options.calibration_iters + max(self.options.static_iters, 1))
        self._owner.get_buffer(self._step).fill_(self.count)
        set_mode(self.quantizers, "quantize")  # weights, too; a gate is applied, or not, as its state says

    def regulariser(self) -> torch.Tensor | None:
        """Return the weighted loss that holds DDTB's gates at zero, or None outside that phase."""
        if self.phase != "static":
            return None
        loss = gate_loss(self.quantizers)
        return None if loss is None else self.options.gate_loss_weight * loss

    def _start_gates(self) -> None:
        if gate_parameters(self.quantizers):
            return  # loaded, or a second forward pass of the same iteration
        mine = {id(quantizer) for quantizer in self.quantizers}
        # In the order of a network with quantizers inside its layers: ties and the gates' first weights follow it.
        in_order = nn.ModuleList(module for module in self.model.modules() if id(module) in mine)
        with torch.random.fork_rng():
            torch.manual_seed(self.seed)  # a resumed run must create the same gates
            start_bounds_and_gates(in_order, self.gate_ratio)
        self._gates_without_ddp = _several_processes()

    def _before_forward(self, module: nn.Module, args: Any) -> None:
        if self._running is not None or not (module.training and torch.is_grad_enabled()):
            return
        self._running = module
        self.enter(self.count + 1)
        if self.phase == "observe":
            self._in_training = [part for part in self.model.modules() if part.training]
            self.model.eval()
            start_observing(self.quantizers, self.options.observed_weights)

    def _after_forward(self, module: nn.Module, args: Any, output: Any) -> Any:
        if module is not self._running:
            return output
        self._running = None
        if not self._in_training:
            return output
        set_mode(self.quantizers, "float")
        for part in self._in_training:
            part.training = True
        self._in_training = []
        if isinstance(output, torch.Tensor) and _several_processes():
            # DistributedDataParallel waits for a gradient of every parameter, of the idle bounds, too.
            output = output + 0.0 * torch.stack([bound.sum() for bound in self._bounds()]).sum()
        return output

    def _before_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        mine = {id(parameter) for parameter in self.model.parameters()}
        held = [p for group in optimizer.param_groups for p in group["params"] if id(p) in mine]
        if not held:
            return
        self._check_trained(optimizer)
        if self.phase == "observe":
            for parameter in held:
                parameter.grad = None  # every optimizer skips a parameter without a gradient
            return
        self._hand_over_gates(optimizer, {id(parameter) for parameter in held})
        if self.steps is not None and self._trains_bounds(optimizer):
            self.steps.before()

    def _after_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        if self._trains_bounds(optimizer):
            if self.steps is not None:
                self.steps.after()
            average_batch_statistics(self.quantizers)
            self.count += 1
            self._owner.get_buffer(self._step).add_(1)
            self._untrained_steps = 0
            if self.watch is not None:
                self.watch(self.count)

    def _check_trained(self, optimizer: Optimizer) -> None:
        self._untrained_steps += not self._trains_bounds(optimizer)
        if self._untrained_steps > UNTRAINED_STEPS:
            raise QuantizationError(
                f"the optimizer ({type(optimizer).__name__}) trains the network but not the bounds of its quantizers; "
                "make it after the quantizer, with quantizer.parameter_groups(lr)"
            )

    def _trains_bounds(self, optimizer: Optimizer) -> bool:
        """Whether its steps count: it holds bounds, or parameters of the network if the bounds are frozen."""
        bounds = {id(bound) for bound in self._bounds() if bound.requires_grad}
        counted = bounds or {id(parameter) for parameter in self.model.parameters()}
        return not counted.isdisjoint(id(p) for group in optimizer.param_groups for p in group["params"])

    def _bounds(self) -> list[nn.Parameter]:
        return bounds_of(self.quantizers)

    def _hand_over_gates(self, optimizer: Optimizer, held: set[int]) -> None:
        """Give the optimizer the gates that were made after it, and make their gradients those of all processes."""
        gates = gate_parameters(self.quantizers)
        if self._gates_without_ddp:
            for gate in gates:
                if gate.grad is not None:
                    distributed.all_reduce(gate.grad)
                    gate.grad /= distributed.get_world_size()
        new = [gate for gate in gates if id(gate) not in held]
        if new and self._trains_bounds(optimizer):
            groups = optimizer.param_groups
            named = [group for group in groups if group.get("name") == GATE_GROUP]
            (named or groups)[0]["params"].extend(new)

    def _before_load(self, model: nn.Module, state: Mapping[str, Any], prefix: str, *args: Any) -> None:
        if not any("_nni_wrapper." in key for key in state):
            raise CheckpointError(
                "the state dict is one of the plain network, and NNI's wrappers would ignore its weights; "
                "load it before the quantizer is made, or give one that was saved after"
            )
        if add_stored_gates(model, {key.removeprefix(prefix): value for key, value in state.items()}):
            self._gates_without_ddp = _several_processes()  # perhaps: averaging twice changes nothing

    def _after_load(self, model: nn.Module, incompatible: Any) -> None:
        self.count = int(self._owner.get_buffer(self._step))
        if self.count:  # an evaluation now sees what one after the last step saw
            self.phase = phase_at(self.count, self.options)
            enter_phase(self.quantizers, self.phase)


def _ancestors(model: nn.Module, names: Sequence[str]) -> list[nn.Module]:
    """Return the modules that contain all those called ``names``, from the outermost."""
    paths = [name.split(".") for name in names]
    shared = []
    for parts in zip(*paths, strict=False):
        if len(set(parts)) > 1:
            break
        shared.append(parts[0])
    return [model.get_submodule(".".join(shared[:depth])) for depth in range(len(shared) + 1)]


def _several_processes() -> bool:
    return distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1


def _listen_to_optimizers(clock: TrainingClock) -> None:
    """Tell a clock of all steps for as long as it lives.

    The hooks of optimizers are global and PyTorch iterates over them, so they stay once they are there: the garbage
    collector, which may end a clock in the middle of another network's step, only takes it out of the list.
    """
    if not _HOOKS:
        _HOOKS.append(register_optimizer_step_pre_hook(partial(_tell_clocks, "_before_step")))
        _HOOKS.append(register_optimizer_step_post_hook(partial(_tell_clocks, "_after_step")))
    _LISTENING[clock] = None


def _tell_clocks(method: str, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
    for clock in list(_LISTENING):
        getattr(clock, method)(optimizer, args, kwargs)


class _Listener:
    """A hook that calls a method of the clock; in a copy or a pickle of the network it does nothing."""

    def __init__(self, clock: TrainingClock | None, method: str) -> None:
        self._clock, self._method = (None if clock is None else weakref.ref(clock)), method

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        clock = None if self._clock is None else self._clock()
        return None if clock is None else getattr(clock, self._method)(*args, **kwargs)

    def __deepcopy__(self, memo: dict[int, Any]) -> _Listener:
        return _Listener(None, self._method)

    def __reduce__(self) -> tuple[type[_Listener], tuple[None, str]]:
        return _Listener, (None, self._method)
