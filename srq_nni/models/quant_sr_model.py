"""BasicSR's models with quantizers in ``network_g``, bounds at their own learning rate, and a teacher."""

from __future__ import annotations

import warnings
from collections import OrderedDict
from typing import Any, Self

import torch
from basicsr.models.sr_model import SRModel
from basicsr.utils import get_root_logger
from basicsr.utils.dist_util import master_only
from basicsr.utils.registry import MODEL_REGISTRY
from torch import nn

from srq_nni import checkpoint
from srq_nni.archs.quantized_arch import build_float
from srq_nni.compression.bounds import RelativeSteps, bounds_rate
from srq_nni.compression.options import options_from
from srq_nni.compression.phases import (
    Phase,
    clear_gates,
    enter_phase,
    gate_loss,
    gate_parameters,
    observing,
    phase_at,
    start_bounds_and_gates,
)
from srq_nni.compression.presets import find_preset
from srq_nni.compression.profiles import apply_profile
from srq_nni.errors import OptionError
from srq_nni.models import saving
from srq_nni.models.average import copy_quantizers, copy_state
from srq_nni.models.base import DEFAULT_BASE, NetworkBlock, find_base_model
from srq_nni.models.equalized_start import equalized_path
from srq_nni.models.injected_loss import inject
from srq_nni.models.monitor import QuantizerMonitor
from srq_nni.models.speed import speed_from
from srq_nni.models.teacher import TEACHER_LOSSES, TeacherLosses, features_of, teacher_block
from srq_nni.quantization.calibration import average_batch_statistics, forget_statistics
from srq_nni.quantization.layers import bounds_of


def check_parallel(num_gpu: int, *, distributed: bool) -> None:
    """Refuse several GPUs in one process.

    Raises:
        OptionError: if ``num_gpu`` is above 1 and there is no launcher.
    """
    if num_gpu > 1 and not distributed:
        raise OptionError(
            f"num_gpu: {num_gpu} without a launcher means DataParallel, whose copies lose calibration; "
            f"use torchrun --nproc_per_node={num_gpu} -m srq_nni.cli.train -opt FILE --launcher pytorch"
        )


@MODEL_REGISTRY.register()
class QuantSRModel(SRModel):
    """Trains the network ``network_g`` with the quantizers of the ``quantization`` block.

    With the key ``base_model`` it extends that model of BasicSR instead of ``SRModel``: its data, losses, order of
    updates and validation stay, the quantizer's losses join the generator's. Further keys: ``path: pretrain_network_t``
    (float teacher: ``network_t``, or ``network_g`` without quantizers), ``train: skt_opt`` (loss between its feature
    and the network's), ``train: distill_opt`` (loss between its output and the network's; ``train: distill_flips``),
    ``train: optim_q`` (learning rate of the bounds: ``relative_lr`` in widths of a quantizer, or ``lr`` in the unit of
    the activations), ``train: equalize_iter`` (see ``equalized_path``), ``train: amp`` and ``train: channels_last``
    (see ``speed.Speed``).
    """

    net_g: nn.Module

    def __new__(cls, opt: dict[str, Any] | None = None) -> Self:
        """Return an instance of this class, or of ``Quant{base_model}``, which derives from it and from the base."""
        base = find_base_model((opt or {}).get("base_model", DEFAULT_BASE), excluded=QuantSRModel)
        return super().__new__(cls if issubclass(cls, base) else _extending(cls, base))

    def __init__(self, opt: dict[str, Any]) -> None:
        self.base_network = opt["network_g"]
        quantization = apply_profile(opt["quantization"], self.base_network.get("type"))
        self.quantization = options_from(quantization)
        self.speed = speed_from(opt.get("train") or {})
        self.phase: Phase = phase_at(1, self.quantization)
        self.own_losses: OrderedDict[str, torch.Tensor] = OrderedDict()
        self._iteration = 0
        self.teacher: nn.Module | None = None
        self.teacher_losses: TeacherLosses | None = None
        self.monitor = QuantizerMonitor(opt)
        block = NetworkBlock(type="QuantizedNetwork", base=self.base_network, quantization=quantization)
        path = self._start_of_the_student(equalized_path(opt)) if opt["is_train"] else opt["path"]
        super().__init__({**opt, "network_g": block, "quantization": quantization, "path": path})

    def _start_of_the_student(self, path: dict[str, Any]) -> dict[str, Any]:
        """Return the ``path`` block without the float weights, where the student starts from random ones."""
        file = path.get("pretrain_network_g")
        if path.get("resume_state") or (file and self.quantization.student == "float"):
            return path
        asked = f" (quantization: student: random; {file} is not loaded)" if file else ""
        get_root_logger().warning(f"The network starts from random weights{asked}; both papers start from float ones.")
        return {**path, "pretrain_network_g": None}

    def model_to_device(self, net: nn.Module) -> nn.Module:
        check_parallel(self.opt["num_gpu"], distributed=self.opt["dist"])
        return super().model_to_device(self.speed.place(net) if net is getattr(self, "net_g", None) else net)

    def load_network(
        self, net: nn.Module, load_path: str, strict: bool = True, param_key: str | None = "params"
    ) -> None:
        """Load a float or quantized checkpoint; every key is accounted for, whatever ``strict`` says."""
        if not self._is_quantized(net):
            super().load_network(net, load_path, strict, param_key)
            return
        quantized = checkpoint.load_weights(
            self.get_bare_model(net),
            load_path,
            param_key=param_key,
            quantization=self.opt["quantization"],
            to_use=not self.is_train,
        )
        if net is self.net_g:
            self._tell_ddp_of_gates()  # those that came with the file
        kind = "quantized" if quantized else "float"
        get_root_logger().info(f"Loaded the {kind} weights of {load_path}; every key accounted for.")

    def _is_quantized(self, net: nn.Module) -> bool:
        """Whether ``net`` is the network or its average, and not a discriminator."""
        return net is self.net_g or net is getattr(self, "net_g_ema", None)

    def init_training_settings(self) -> None:
        if any(self.opt["train"].get(key) for key in TEACHER_LOSSES):
            self._set_up_teacher()
        net = self.get_bare_model(self.net_g)
        net.register_forward_hook(self._add_own_losses)
        self.speed.install(net)
        super().init_training_settings()

    def _set_up_teacher(self) -> None:
        opt = {**self.opt, "network_g": self.base_network}
        self.teacher = build_float(teacher_block(opt), "network_t").to(self.device).eval().requires_grad_(False)
        self.speed.place(self.teacher)
        self.load_teacher()
        train, student = self.opt["train"], self.get_bare_model(self.net_g)
        features = features_of(opt, self.quantization) if train.get("skt_opt") else None
        seed = self.opt.get("manual_seed") or 0
        self.teacher_losses = TeacherLosses(student, self.teacher, train, features, self.device, seed)

    def load_teacher(self) -> None:
        """Give the teacher its float weights."""
        assert self.teacher is not None
        path = self.opt["path"]
        checkpoint.load_weights(self.teacher, path["pretrain_network_t"], param_key=path.get("param_key_t", "params"))

    def get_optimizer(self, optim_type: str, params: Any, lr: float, **kwargs: Any) -> torch.optim.Optimizer:
        """One optimizer for ``network_g``, in which the bounds and DDTB's gates are groups of their own, at the end."""
        groups = list(params)
        groups = groups if groups and isinstance(groups[0], dict) else [{"params": groups}]
        bounds = bounds_of(self.net_g)
        gates = gate_parameters(self.net_g)
        apart = {id(parameter) for parameter in (*bounds, *gates)}
        network = [{**group, "params": [p for p in group["params"] if id(p) not in apart]} for group in groups]
        relative = False
        if sum(len(group["params"]) for group in network) < sum(len(group["params"]) for group in groups):
            given = self.opt["train"].get("optim_q", {})
            rate, relative = bounds_rate(given.get("lr"), given.get("relative_lr"), self.quantization.profile)
            network.append({"params": bounds, "lr": rate, "weight_decay": 0.0})
            if self.quantization.quantizer == "ddtb":
                network.append({"params": gates})  # empty until the gated layers are chosen
        optimizer: torch.optim.Optimizer = super().get_optimizer(optim_type, network, lr, **kwargs)
        if relative:
            steps = RelativeSteps(self.get_bare_model(self.net_g))
            optimizer.register_step_pre_hook(steps.before)
            optimizer.register_step_post_hook(steps.after)
        return optimizer

    def setup_optimizers(self) -> None:
        super().setup_optimizers()
        self.optimizer_g.register_step_post_hook(
            lambda *_: average_batch_statistics(self.get_bare_model(self.net_g))  # before model_ema copies them
        )

    def update_learning_rate(self, current_iter: int, warmup_iter: int = -1) -> None:
        with warnings.catch_warnings():
            if current_iter <= self.quantization.calibration_iters + 1:  # DDTB's first iterations update nothing
                warnings.filterwarnings("ignore", "Detected call of `lr_scheduler.step", UserWarning)
            super().update_learning_rate(current_iter, warmup_iter)

    def set_phase(self, current_iter: int) -> None:
        """Put the quantizers into the phase of this iteration, which needs nothing but its number."""
        if current_iter == 1:  # a quantized checkpoint to start from brings those of its own run
            forget_statistics(self.get_bare_model(self.net_g))
        if self.quantization.quantizer == "ddtb" and current_iter == self.quantization.calibration_iters + 1:
            self._start_gates(self.get_bare_model(self.net_g))
        self._enter_phase(current_iter)

    def resume_training(self, resume_state: dict[str, Any]) -> None:
        super().resume_training(resume_state)
        self._enter_phase(int(resume_state["iter"]))  # if no iteration is left, the file that is saved says its phase

    def _enter_phase(self, current_iter: int) -> None:
        self.phase = phase_at(current_iter, self.quantization)
        enter_phase(self.get_bare_model(self.net_g), self.phase)
        if self.ema_decay > 0:
            enter_phase(self.net_g_ema, self.phase)  # validation sees the average in the same phase

    def _start_gates(self, net: nn.Module) -> None:
        ratio = self.quantization.dynamic_ratio
        if ratio is None:
            ratio = find_preset(self.base_network["type"]).dynamic_ratio
        clear_gates(net)  # those of a checkpoint that this run started from
        with torch.random.fork_rng():
            torch.manual_seed(self.opt.get("manual_seed") or 0)  # a resumed run must create the same gates
            chosen = start_bounds_and_gates(net, ratio)
        get_root_logger().info(f"Gates on {len(chosen)} layers: {', '.join(chosen) or 'none'}.")
        self.optimizer_g.param_groups[-1]["params"][:] = gate_parameters(net)
        self._tell_ddp_of_gates()
        if self.ema_decay > 0:
            copy_quantizers(net, self.net_g_ema)

    def _tell_ddp_of_gates(self) -> None:
        """Wrap a distributed network again, since DDP averages the gradients of those parameters only that it has seen.

        It also makes them equal in all processes.
        """
        net = self.get_bare_model(self.net_g)
        if self.opt["dist"] and gate_parameters(net):
            self.net_g = self.model_to_device(net)

    def optimize_parameters(self, current_iter: int) -> None:
        """Run the base model's step in the phase of this iteration; while DDTB observes, nothing is updated."""
        self.set_phase(current_iter)
        self._iteration = current_iter
        self.own_losses.clear()
        if self.phase == "observe":
            self._observe()
            return
        with self.monitor.watching(self.net_g, current_iter):
            super().optimize_parameters(current_iter)

    def _observe(self) -> None:
        """Let the quantizers see one batch of float activations."""
        net = self.get_bare_model(self.net_g)
        losses: OrderedDict[str, torch.Tensor] = OrderedDict()
        with observing(net, self.quantization.observed_weights):
            self.output = net(self.lq)
            if self.cri_pix:
                losses["l_pix"] = self.cri_pix(self.output, self.gt)
        self.log_dict = self.reduce_loss_dict(losses)

    def _add_own_losses(self, net: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        """Attach the teacher's losses and the regulariser of the gates to the output of a forward pass that trains."""
        if not (net.training and torch.is_grad_enabled()):
            return output
        losses = self.own_losses
        if self.teacher_losses is not None:
            losses.update(self.teacher_losses.after(args[0], output, self._iteration))
        regulariser = gate_loss(net) if self.phase == "static" else None
        if regulariser is not None:
            losses["l_gate"] = self.quantization.gate_loss_weight * regulariser
        return inject(output, torch.stack(list(losses.values())).sum()) if losses else output

    def reduce_loss_dict(self, loss_dict: dict[str, torch.Tensor]) -> OrderedDict[str, Any]:
        """Return all losses, ours behind the base model's, averaged over the processes but still on the device."""
        losses = OrderedDict((key, loss.detach().mean()) for key, loss in {**loss_dict, **self.own_losses}.items())
        self.own_losses.clear()  # they hold the graph of the step
        if self.opt["dist"] and losses:
            stacked = torch.stack(list(losses.values()))
            torch.distributed.reduce(stacked, dst=0)
            losses = OrderedDict(zip(losses, stacked / self.opt["world_size"], strict=True))
        return losses

    def get_current_log(self) -> OrderedDict[str, float]:
        """Return the losses as numbers; only here, when they are printed, the host waits for the device."""
        self.monitor.write()
        return OrderedDict((key, float(value)) for key, value in self.log_dict.items())

    def model_ema(self, decay: float = 0.999) -> None:
        """Average the weights, and the bounds once they train; copy buffers and bounds that are being calibrated."""
        super().model_ema(decay)
        copy_state(self.get_bare_model(self.net_g), self.net_g_ema, bounds=self.phase == "calibrate")

    @master_only
    def save_network(
        self, net: nn.Module | list[nn.Module], net_label: str, current_iter: int, param_key: str | list[str] = "params"
    ) -> None:
        """Write ``{net_label}_{iter}.pth`` atomically, with the metadata that ``srq_nni.load`` needs."""
        metadata = None
        if self._is_quantized(net[0] if isinstance(net, list) else net):
            metadata = checkpoint.metadata_of(self.base_network, self.opt["quantization"], phase=self.phase)
        saving.save_network(self, net, net_label, current_iter, param_key, metadata)

    @master_only
    def save_training_state(self, epoch: int, current_iter: int) -> None:
        """Write ``{iter}.state`` atomically; BasicSR resumes from it."""
        saving.save_training_state(self, epoch, current_iter)


_EXTENDED: dict[tuple[type, type], Any] = {}


def _extending(model: type, base: type) -> Any:
    """Return ``model`` on top of ``base``: in the order of resolution ``base`` stands between it and ``SRModel``."""
    name = f"Quant{base.__name__}" if model is QuantSRModel else f"{model.__name__}On{base.__name__}"
    return _EXTENDED.setdefault((model, base), type(name, (model, base), {"__module__": __name__}))
