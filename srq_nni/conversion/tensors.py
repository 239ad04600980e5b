"""The tensors of one activation quantizer, as the released code and as srq-nni keep them."""

from __future__ import annotations

import torch

from srq_nni.quantization.activation import INITIAL_BOUND
from srq_nni.quantization.gate import Gate

State = dict[str, torch.Tensor]
INITIAL_STATISTIC = {"pams": 1.0, "ddtb": 0.0}  # of max_val and min_val before calibration
GATE = {"reduce.weight": "atten_c.1.weight", "expand.weight": "atten_c.5.weight"} | {
    f"norm.{key}": f"atten_c.2.{key}"
    for key in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
}
FIELDS = {
    "pams": ("alpha", "max_val"),
    "ddtb": ("alpha_upper", "alpha_lower", "max_val", "min_val", *GATE.values(), "is_dynamic"),
}
MARKS = {"pams": ("alpha",), "ddtb": ("alpha_upper", "alpha_lower", "is_dynamic")}  # no other network has these


def to_ours(method: str, official: State, bits: int) -> State:
    """Return our tensors of a quantizer from those of ``FIELDS[method]``; a dynamic one gets its gate, applied."""
    initial = INITIAL_STATISTIC[method]
    observed = [key for key in ("min_val", "max_val") if key in official]
    untouched = all(official[key].shape == (1,) and bool(official[key] == initial) for key in observed)
    mean = torch.cat([official[key].reshape(1) for key in observed]).double()
    count = torch.tensor(0 if untouched else 1)
    ours = {"bit_width": torch.tensor(bits), "statistic.mean": mean * count, "statistic.count": count}
    if method == "pams":
        return {"alpha": official["alpha"].reshape(1), **ours}
    dynamic = bool(official["is_dynamic"].any())
    ours |= {"upper": official["alpha_upper"].reshape(1), "lower": official["alpha_lower"].reshape(1)}
    ours |= {"gate_is_applied": torch.tensor(dynamic), "channels": torch.tensor(channels_of(official))}
    ours |= {"intensity.mean": torch.zeros(2).double(), "intensity.squares": torch.zeros(2).double()}
    ours["intensity.count"] = torch.tensor(0)
    return ours | {f"gate.{key}": official[name] for key, name in GATE.items() if dynamic}


def to_official(method: str, ours: State, channels: int) -> State:
    """Return the released code's tensors of a quantizer; where ours has no gate, a new one that is not dynamic."""
    seen = bool(ours["statistic.count"] > 0)
    mean = (
        ours["statistic.mean"].float() if seen else torch.full_like(ours["statistic.mean"], INITIAL_STATISTIC[method])
    )
    mean = mean.float()
    if method == "pams":
        return {"alpha": ours["alpha"].reshape(1), "max_val": mean.reshape(1)}
    gated = "gate.reduce.weight" in ours
    official = {"alpha_upper": ours["upper"].reshape(1), "alpha_lower": ours["lower"].reshape(1)}
    official |= {"max_val": mean[1:], "min_val": mean[:1]}
    official |= {name: ours[f"gate.{key}"] for key, name in GATE.items()} if gated else _new_gate(channels)
    official["is_dynamic"] = torch.full((1,), float(gated and bool(ours["gate_is_applied"])))
    return official


def unused(method: str, channels: int) -> State:
    """Return the released code's tensors of a quantizer that never ran."""
    if method == "pams":
        return {"alpha": torch.full((1,), INITIAL_BOUND), "max_val": torch.ones(1)}
    bounds = {"alpha_upper": torch.full((1,), INITIAL_BOUND), "alpha_lower": torch.full((1,), -INITIAL_BOUND)}
    bounds |= {"max_val": torch.zeros(1), "min_val": torch.zeros(1)}
    return bounds | _new_gate(channels) | {"is_dynamic": torch.zeros(1)}


def channels_of(official: State) -> int:
    """Return the number of channels that the gate of a DDTB quantizer was made for."""
    return int(official["atten_c.1.weight"].shape[1])


def _new_gate(channels: int) -> State:
    """Return a gate as the released code would make it, from a seed of its own."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        state = Gate(channels).state_dict()
    return {name: state[key] for key, name in GATE.items()}
