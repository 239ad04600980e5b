"""BasicSR's SRModel with quantizers, bounds at their own learning rate, and a teacher."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import torch
from basicsr.losses import build_loss
from basicsr.models.sr_model import SRModel
from basicsr.utils import get_root_logger
from basicsr.utils.dist_util import master_only
from basicsr.utils.registry import MODEL_REGISTRY
from torch import nn

from srq_nni import checkpoint
from srq_nni.archs.quantized_arch import build_float
from srq_nni.compression.options import options_from
from srq_nni.compression.phases import (
    enter_phase,
    gate_loss,
    gate_parameters,
    observing,
    phase_at,
    start_bounds_and_gates,
)
from srq_nni.compression.presets import find_preset
from srq_nni.errors import OptionError
from srq_nni.models.feature import InputRecorder
from srq_nni.quantization.layers import activation_quantizers, add_stored_gates

BOUNDS_LEARNING_RATE = 1e-2  # of both papers, in feature units of networks scaled to 255


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

    Further keys: ``path: pretrain_network_t`` (float teacher, the unquantized ``network_g``), ``train: skt_opt``
    (its loss), ``train: optim_q`` (learning rate of the bounds).
    """

    net_g: nn.Module

    def __init__(self, opt: dict[str, Any]) -> None:
        self.base_network = opt["network_g"]
        self.quantization = options_from(opt["quantization"])
        quantized = {"type": "QuantizedNetwork", "base": self.base_network, "quantization": opt["quantization"]}
        super().__init__({**opt, "network_g": quantized})

    def model_to_device(self, net: nn.Module) -> nn.Module:
        check_parallel(self.opt["num_gpu"], distributed=self.opt["dist"])
        return super().model_to_device(net)

    def load_network(
        self, net: nn.Module, load_path: str, strict: bool = True, param_key: str | None = "params"
    ) -> None:
        """Load a float or quantized checkpoint; every key is accounted for, whatever ``strict`` says."""
        quantized = checkpoint.load_weights(
            self.get_bare_model(net), load_path, param_key=param_key, quantization=self.opt["quantization"]
        )
        kind = "quantized" if quantized else "float"
        get_root_logger().info(f"Loaded the {kind} weights of {load_path}; every key accounted for.")

    def init_training_settings(self) -> None:
        self.teacher: nn.Module | None = None
        if self.opt["train"].get("skt_opt"):
            self._set_up_teacher()
        super().init_training_settings()

    def _set_up_teacher(self) -> None:
        self.cri_skt = build_loss(self.opt["train"]["skt_opt"]).to(self.device)
        self.teacher = build_float(self.base_network).to(self.device).eval().requires_grad_(False)
        path = self.opt["path"]
        checkpoint.load_weights(self.teacher, path["pretrain_network_t"], param_key=path.get("param_key_t", "params"))
        feature = self.quantization.feature or find_preset(self.base_network["type"]).feature
        self.student_feature = InputRecorder(self.get_bare_model(self.net_g), feature)
        self.teacher_feature = InputRecorder(self.teacher, feature)

    def setup_optimizers(self) -> None:
        """One optimizer; the network, the bounds and DDTB's gates are groups of their own."""
        train_opt = self.opt["train"]
        bounds = [bound for _, quantizer in activation_quantizers(self.net_g) for bound in quantizer.bounds()]
        identities = {id(bound) for bound in bounds}
        settings = dict(train_opt["optim_g"])
        lr_bounds = train_opt.get("optim_q", {}).get("lr", BOUNDS_LEARNING_RATE)
        gates = gate_parameters(self.net_g)
        identities.update(id(p) for p in gates)
        weights = [p for p in self.net_g.parameters() if p.requires_grad and id(p) not in identities]
        groups: list[dict[str, Any]] = [{"params": weights}, {"params": bounds, "lr": lr_bounds, "weight_decay": 0.0}]
        if self.quantization.quantizer == "ddtb":
            groups.append({"params": gates})  # empty until the gated layers are chosen
        self.optimizer_g = self.get_optimizer(settings.pop("type"), groups, **settings)
        self.optimizers.append(self.optimizer_g)

    def set_phase(self, current_iter: int) -> None:
        """Put the quantizers into the phase of this iteration, which needs nothing but its number."""
        self.phase = phase_at(current_iter, self.quantization)
        net = self.get_bare_model(self.net_g)
        if self.quantization.quantizer == "ddtb" and current_iter == self.quantization.calibration_iters + 1:
            self._start_gates(net)
        enter_phase(net, self.phase)
        if self.ema_decay > 0:
            enter_phase(self.net_g_ema, self.phase)  # validation sees the average in the same phase

    def _start_gates(self, net: nn.Module) -> None:
        ratio = self.quantization.dynamic_ratio
        if ratio is None:
            ratio = find_preset(self.base_network["type"]).dynamic_ratio
        with torch.random.fork_rng():
            torch.manual_seed(self.opt.get("manual_seed") or 0)  # a resumed run must create the same gates
            chosen = start_bounds_and_gates(net, ratio)
        get_root_logger().info(f"Gates on {len(chosen)} layers: {', '.join(chosen) or 'none'}.")
        self.optimizer_g.param_groups[2]["params"].extend(gate_parameters(net))
        if self.ema_decay > 0:
            add_stored_gates(self.net_g_ema, net.state_dict())
            self.net_g_ema.load_state_dict(net.state_dict())
        if self.opt["dist"]:
            self.net_g = self.model_to_device(net)  # DDP must see the new parameters

    def optimize_parameters(self, current_iter: int) -> None:
        self.set_phase(current_iter)
        if self.phase == "observe":
            self._observe()
            return
        self.optimizer_g.zero_grad()
        self.output = self.net_g(self.lq)
        losses = self._losses()
        torch.stack(list(losses.values())).sum().backward()
        self.optimizer_g.step()
        self.log_dict = self.reduce_loss_dict(losses)
        if self.ema_decay > 0:
            self.model_ema(decay=self.ema_decay)

    def _observe(self) -> None:
        """Let the quantizers see one batch of float activations; nothing is updated."""
        net = self.get_bare_model(self.net_g)
        with observing(net):
            self.output = net(self.lq)
            self.log_dict = self.reduce_loss_dict(self._losses())

    def _losses(self) -> OrderedDict[str, torch.Tensor]:
        losses: OrderedDict[str, torch.Tensor] = OrderedDict()
        if self.cri_pix:
            losses["l_pix"] = self.cri_pix(self.output, self.gt)
        if self.cri_perceptual:
            perceptual, style = self.cri_perceptual(self.output, self.gt)
            losses.update({k: v for k, v in (("l_percep", perceptual), ("l_style", style)) if v is not None})
        if self.teacher is not None:
            with torch.no_grad():
                self.teacher(self.lq)
            losses["l_skt"] = self.cri_skt(self.student_feature.take(), self.teacher_feature.take())
        regulariser = gate_loss(self.net_g) if self.phase == "static" else None
        if regulariser is not None:
            losses["l_gate"] = self.quantization.gate_loss_weight * regulariser
        return losses

    def model_ema(self, decay: float = 0.999) -> None:
        """Average the weights; copy the bounds and all buffers, which an average would leave behind."""
        super().model_ema(decay)
        source, target = self.get_bare_model(self.net_g), self.net_g_ema
        copies = dict(activation_quantizers(target))
        with torch.no_grad():
            for name, quantizer in activation_quantizers(source):
                for new, old in zip(quantizer.bounds(), copies[name].bounds(), strict=True):
                    old.copy_(new)
            for new, old in zip(source.buffers(), target.buffers(), strict=True):
                old.copy_(new)

    @master_only
    def save_network(
        self, net: nn.Module | list[nn.Module], net_label: str, current_iter: int, param_key: str | list[str] = "params"
    ) -> None:
        """Write ``{net_label}_{iter}.pth`` atomically, with the metadata that ``srq_nni.load`` needs."""
        nets = net if isinstance(net, list) else [net]
        keys = param_key if isinstance(param_key, list) else [param_key]
        name = "latest" if current_iter == -1 else current_iter
        content: dict[str, Any] = {
            key: {k: v.detach().cpu() for k, v in self.get_bare_model(part).state_dict().items()}
            for key, part in zip(keys, nets, strict=True)
        }
        content[checkpoint.METADATA_KEY] = checkpoint.metadata_of(self.base_network, self.opt["quantization"])
        checkpoint.save(content, f"{self.opt['path']['models']}/{net_label}_{name}.pth")

    @master_only
    def save_training_state(self, epoch: int, current_iter: int) -> None:
        """Write ``{iter}.state`` atomically; BasicSR resumes from it."""
        if current_iter == -1:
            return
        state = {
            "epoch": epoch,
            "iter": current_iter,
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "schedulers": [scheduler.state_dict() for scheduler in self.schedulers],
        }
        checkpoint.save(state, f"{self.opt['path']['training_states']}/{current_iter}.state")
