"""PAMS and DDTB as quantizers of NNI's compression API.

They stand where NNI's ``QATQuantizer`` or ``LsqQuantizer`` stands. The arithmetic is that of
``srq_nni.quantization``, so the same network, data and seed give the same losses and bits as ``QuantSRModel`` does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from nni.compression.base.compressor import Quantizer
from nni.compression.base.wrapper import ModuleWrapper
from nni.compression.utils.evaluator import Evaluator
from torch import nn
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.optim import Optimizer

from srq_nni.compression import calibration_config as calibration
from srq_nni.compression.blocks import expose_sites, follow_released_order
from srq_nni.compression.bounds import RelativeSteps, bounds_rate
from srq_nni.compression.clock import TrainingClock
from srq_nni.compression.entries import canonical_config_list, default_dynamic_ratio, expand_entries
from srq_nni.compression.optimizer import add_groups, add_groups_when_built, parameter_groups
from srq_nni.compression.options import options_from
from srq_nni.compression.profiles import apply_profile
from srq_nni.compression.sites import quantization_sites
from srq_nni.compression.wrapper import APPLY_METHOD, QuantizingWrapper, quantizer_of, register_module_type
from srq_nni.errors import OptionError, QuantizationError
from srq_nni.progress import Reported
from srq_nni.quantization.activation import DDTBActivation
from srq_nni.quantization.layers import refuse_gate_on_linear
from srq_nni.quantization.methods import get_method
from srq_nni.quantization.targets import WEIGHT, quantizer_name


class PublishedQuantizer(Quantizer):
    """What PAMS and DDTB share: our quantizers on NNI's wrappers, and the phases of training.

    ``compress(max_steps, max_epochs)`` trains through the evaluator and returns the network and its calibration_config.
    Without an evaluator any loop trains: make the optimizer after the quantizer, from ``parameter_groups``.
    """

    method: ClassVar[str]
    config_list: list[dict[str, Any]]

    def __init__(
        self,
        model: nn.Module,
        config_list: Sequence[Mapping[str, Any]],
        evaluator: Evaluator | None = None,
        existed_wrappers: Mapping[str, ModuleWrapper] | None = None,
        *,
        bounds_lr: float | None = None,
        relative_bounds_lr: float | None = None,
        seed: int = 0,
        **options: Any,
    ) -> None:
        if isinstance(model, DataParallel | DistributedDataParallel):
            raise QuantizationError(
                f"the network is a {type(model).__name__}; make the quantizer first and wrap afterwards: "
                "DistributedDataParallel(model)"
            )
        if "student" in options:
            raise OptionError("student: the quantizer starts from the weights that the network has; load them before")
        if "feature" in options:
            raise OptionError("feature: the quantizer compares none; give it to skt_config_list(model, feature=..)")
        block = {"quantizer": self.method, "config_list": list(config_list), **options}
        self.options = options_from(apply_profile(block, type(model).__name__))
        entries = self.options.config_list or []
        self.bounds_lr, self._relative = bounds_rate(bounds_lr, relative_bounds_lr, self.options.profile)
        self.seed = seed
        self._existed = dict(existed_wrappers or {})
        self._quantizers: dict[tuple[str, str], nn.Module] = {}
        super().__init__(expose_sites(model), [dict(entry) for entry in entries], evaluator, self._existed)
        if self.evaluator is not None:
            add_groups_when_built(self.evaluator, self._add_groups)

    def _validate_config(self) -> None:
        """Check the config_list against the network and spell it out for NNI: one entry a module, no pattern left."""
        entries = expand_entries(self.bound_model, self.config_list, self.method, self.options.profile)
        numbers, plain = [number for number, _ in entries], [entry for _, entry in entries]
        self._sites = quantization_sites(self.bound_model, plain, self.method, trained_by_nni=True, numbers=numbers)
        modules = dict(self.bound_model.named_modules(remove_duplicate=False))
        for site in self._sites:
            wrapper = self._existed.get(site.module)
            if wrapper is not None and site.target in wrapper.quantization_target_spaces:
                raise OptionError(
                    f"config_list: target '{site.target}' of '{site.module}' is quantized already, by the quantizer "
                    "that this one is fused with; exclude it here or there"
                )
            if hasattr(modules[site.module], "_nni_wrapper"):
                raise OptionError(
                    f"config_list: '{site.module}' is in the hands of another compressor; call its unwrap_model() "
                    f"first, or make this one with {type(self).__name__}.from_compressor(it, ..)"
                )
            register_module_type(modules[site.module])
        self.config_list = canonical_config_list(self.bound_model, self._sites, entries, get_method(self.method).scheme)
        super()._validate_config()

    def wrap_model(self) -> None:
        """Put NNI's wrappers on the modules, and at the first time our quantizers on the wrappers."""
        if not self._quantizers:
            self._host_quantizers()
        super().wrap_model()
        follow_released_order(self.bound_model)

    def _host_quantizers(self) -> None:
        method = get_method(self.method)
        device = next((parameter.device for parameter in self.bound_model.parameters()), torch.device("cpu"))
        for site in self._sites:
            wrapper = self._module_wrappers[site.module]
            QuantizingWrapper.adopt(wrapper)
            options = dict(site.options)
            share = options.pop("dynamic_ratio", None)
            maker = method.weight if site.target == WEIGHT else method.activation
            quantizer = maker(site.bits, **options).to(device)
            refuse_gate_on_linear(wrapper.module, quantizer)
            wrapper.add_module(quantizer_name(site.target), quantizer)
            self._quantizers[site.module, site.target] = quantizer
            if isinstance(quantizer, DDTBActivation):
                quantizer.gate_share = share
            space = wrapper.quantization_target_spaces[site.target]
            space.apply_method = APPLY_METHOD
            calibration.describe(space, quantizer)  # NNI passes over a target whose scale is None
        self._start_clock()

    def _start_clock(self) -> None:
        owner = self._module_wrappers[self._sites[0].module]
        taken = dict(owner.named_buffers(recurse=False))
        step = next(name for i in range(len(taken) + 1) if (name := f"{self.method}_step{i or ''}") not in taken)
        quantizers, names = list(self._quantizers.values()), [site.module for site in self._sites]
        ratio = default_dynamic_ratio(self.bound_model, self.options)
        self.clock = TrainingClock(self.bound_model, quantizers, ratio, self.options, names, owner, step, self.seed)
        if self._relative:
            self.clock.steps = RelativeSteps(self.clock.quantizers)
        assert isinstance(owner, QuantizingWrapper)
        owner.start(self.clock)

    def parameter_groups(self, lr: float, **settings: Any) -> list[dict[str, Any]]:
        """Return the groups for an optimizer of your own: the network, the bounds of all quantizers, DDTB's gates.

        Args:
            lr: learning rate of the network and of the gates.
            settings: further settings of these two groups, such as ``weight_decay``.
        """
        return parameter_groups(self.bound_model, lr, self.bounds_lr, **settings)

    def _add_groups(self, optimizer: Optimizer) -> None:
        add_groups(optimizer, self.clock.quantizers, self.bounds_lr)

    def gate_loss(self) -> torch.Tensor | None:
        """Return what DDTB adds to the loss while its gates are held, or None; ``compress`` adds it by itself."""
        return self.clock.regulariser()

    def _single_compress(self, max_steps: int | None, max_epochs: int | None) -> None:
        self._fusion_compress(max_steps, max_epochs)

    def compress(self, max_steps: int | None = None, max_epochs: int | None = None) -> tuple[nn.Module, dict[str, Any]]:
        """Train through the evaluator; on a terminal a bar shows the calibration.

        Args:
            max_steps: number of steps of the optimizer, or None.
            max_epochs: number of epochs, or None; one of the two is needed.

        Returns:
            The wrapped network and its calibration_config.

        Raises:
            QuantizationError: without an evaluator, without a length, or if the length ends in the observation: at once
                for a number of steps, after training for epochs, since only the loop knows their steps.
        """
        if self.evaluator is None:
            raise QuantizationError(
                "compress trains through an evaluator and there is none; give one, or train the network in your own "
                "loop and call get_calibration_config()"
            )
        if max_steps is None and max_epochs is None:
            raise QuantizationError("compress: neither max_steps nor max_epochs is given; give one of them")
        if self.method == "ddtb" and max_steps is not None and max_steps <= self.options.calibration_iters:
            raise QuantizationError(
                f"max_steps: {max_steps} ends while ddtb only observes; give more than calibration_iters "
                f"({self.options.calibration_iters}), or lower those"
            )
        with Reported("Calibrating", "iteration") as shown:
            try:
                self.clock.watch = lambda count: shown(count, self.options.calibration_iters)
                self.clock.watch(self.clock.count)
                return super().compress(max_steps, max_epochs)
            finally:
                self.clock.watch = None

    def _fuse_preprocess(self, evaluator: Evaluator) -> None:
        if self.method == "ddtb":
            evaluator.patch_loss(self._with_gate_loss)

    def _with_gate_loss(self, loss: torch.Tensor, batch: Any) -> torch.Tensor:
        regulariser = self.clock.regulariser()
        return loss if regulariser is None else loss + regulariser

    def _fuse_postprocess(self, evaluator: Evaluator) -> None:
        """Nothing is left to do, since the bounds are in the network, but to check that they are."""
        try:
            self._check_observation_is_over()
        except QuantizationError:
            evaluator.unbind_model()  # as NNI would now, so that the same compressor can train again
            raise

    def _check_observation_is_over(self) -> None:
        clocks = [clock for wrapper in self._module_wrappers.values() for clock in getattr(wrapper, "clocks", [])]
        for clock in clocks:
            if clock.options.quantizer == "ddtb" and clock.count <= clock.options.calibration_iters:
                raise QuantizationError(
                    f"ddtb made {clock.count} steps and only observes in the first {clock.options.calibration_iters} "
                    "(calibration_iters), so its bounds are not set; train longer, or lower calibration_iters"
                )

    def get_calibration_config(self) -> dict[str, dict[str, dict[str, Any]]]:
        """Return NNI's calibration_config, of all quantizers that are fused with this one.

        Of a target of ours it also holds ``quantizer`` and ``options``, ``quant_min`` and ``quant_max`` (codes, with
        zero point 0), ``bounds`` (float32, in the unit of the tensor) and ``state`` (with the gate, if there is one):
        enough for ``quantized_network`` and ``update_calibration_config``.

        Raises:
            QuantizationError: while DDTB only observes, since its bounds are not set then.
        """
        self._check_observation_is_over()
        for _, _, space, quantizer in self._targets():
            calibration.describe(space, quantizer)
        config = {name: dict(targets) for name, targets in super().get_calibration_config().items()}
        for module, target, space, quantizer in self._targets():
            config[module][target].update(calibration.entry_of(space, quantizer))
        return config

    def update_calibration_config(self, calibration_config: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> None:
        """Take bounds and gates from a calibration_config; training then goes on with the last phase.

        Raises:
            OptionError: if it names a target that is not quantized here, or one of another quantizer, bits or weight,
                or if an entry is damaged. Nothing is changed then.
        """
        calibration.check_targets(calibration_config, self._module_wrappers)
        entries = [
            (module, target, entry) for module, part in calibration_config.items() for target, entry in part.items()
        ]
        ours = {(module, target): quantizer for module, target, _, quantizer in self._targets()}
        for module, target, entry in entries:
            space = self._module_wrappers[module].quantization_target_spaces[target]
            calibration.check_entry(space, ours.get((module, target)), entry, f"target '{target}' of '{module}'")
        for module, target, entry in entries:
            if (module, target) in ours:
                calibration.restore(ours[module, target], entry)
            else:
                super().update_calibration_config({module: {target: dict(entry)}})
        self.clock.finish()

    def unwrap_model(self) -> nn.Module:
        """Take the quantizers out; return the plain network, its keys as before, with weights on their grids."""
        wrappers = self._module_wrappers.values()
        # A compressor that was fused with this one may have wrapped the modules again, or taken the wrappers off.
        self._is_wrapped = any(getattr(wrapper.module, "_nni_wrapper", None) is wrapper for wrapper in wrappers)
        if self._is_wrapped:
            super().unwrap_model()
        return self.bound_model

    def quantized_network(self) -> nn.Module:
        """Return a copy of the network with the quantizers inside its layers, as export and the simulator read it."""
        return calibration.with_live_quantizers(self.bound_model, self._module_wrappers)

    def _targets(self) -> list[tuple[str, str, Any, nn.Module]]:
        found = []
        for module, wrapper in self._module_wrappers.items():
            for target, space in wrapper.quantization_target_spaces.items():
                quantizer = quantizer_of(space)
                if quantizer is not None:
                    found.append((module, target, space, quantizer))
        return found


class PAMSQuantizer(PublishedQuantizer):
    """PAMS (arXiv 2011.04212) for NNI.

    Args:
        model: network, changed in place; load its float weights before.
        config_list: in NNI's format, as ``srq_nni.config_list`` writes it, or ``[{"wiring": "paper", "quant_dtype":
            "int4"}]`` for a network with a preset. Further settings of an entry or a target: ``calibration``.
        evaluator: NNI's ``TorchEvaluator`` or ``LightningEvaluator``, our ``LoopEvaluator``, or None.
        existed_wrappers: for ``from_compressor``.
        bounds_lr: learning rate of the bounds in the unit of the activations (published: 1e-2).
        relative_bounds_lr: the same in widths of a quantizer; 2e-3 if neither is given.
        seed: not used by PAMS, which starts nothing at random.
        calibration_iters: steps in which the bounds follow the running statistic while the network trains.
        profile: ``official`` sets these switches, and those of the entries, to what the released code does.

    Raises:
        OptionError: names the entry and what it allows.
    """

    method = "pams"


class DDTBQuantizer(PublishedQuantizer):
    """DDTB (arXiv 2203.03844) for NNI.

    Args:
        model: network, changed in place; load its float weights before.
        config_list: as for ``PAMSQuantizer``. Further settings: ``calibration``, ``percentile``, ``limit_levels``,
            ``dynamic_ratio``.
        evaluator: as for ``PAMSQuantizer``.
        existed_wrappers: for ``from_compressor``.
        bounds_lr: learning rate of the bounds in the unit of the activations (published: 1e-2).
        relative_bounds_lr: the same in widths of a quantizer; 2e-3 if neither is given.
        seed: of the gates' first weights.
        calibration_iters: steps in which float activations are observed; gradients of these steps are dropped.
        static_iters: steps in which the gates are then held at zero.
        dynamic_ratio: share of activation quantizers that get a gate; the preset's, or 0.3 without one.
        gate_loss_weight: weight of the loss that holds the gates, for images in [0, 1].
        observed_weights: ``float`` or ``quantized``, while float activations are observed.
        profile: ``official`` sets these switches, and those of the entries, to what the released code does.

    Raises:
        OptionError: names the entry and what it allows.
    """

    method = "ddtb"
