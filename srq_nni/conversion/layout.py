"""All tensors of one network, as the released code and as srq-nni name and keep them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from srq_nni.archs.quantized_arch import build_float, insert_quantizers
from srq_nni.compression.options import options_from
from srq_nni.conversion import tensors
from srq_nni.conversion.naming import Naming
from srq_nni.conversion.network import MEAN_SHIFTS
from srq_nni.conversion.tensors import State
from srq_nni.errors import CheckpointError, did_you_mean, listing
from srq_nni.quantization.gate import Gate
from srq_nni.quantization.layers import activation_quantizers

DDTB_FUSED_CHANNELS = 1024  # of the gate before RDN's GFF, in the released code whatever the configuration


class Layout:
    """The keys of one network on both sides, and the way of each tensor.

    Args:
        network: ``network_g`` block, complete.
        quantization: ``quantization`` block of a student; None for a float network.
        conv2: see ``Naming``.
    """

    def __init__(self, network: Mapping[str, Any], quantization: Mapping[str, Any] | None, conv2: int) -> None:
        self.network, self.quantization = network, quantization
        self.arch: str = network["type"]
        self.method: str | None = None if quantization is None else quantization["quantizer"]
        self.naming = Naming(self.arch, conv2, network["num_block"])
        with torch.device("meta"):
            model = build_float(network)
            self.parameters = {self.naming.parameter(key): (key, value) for key, value in model.state_dict().items()}
            self.sites: dict[str, str] = {}  # official name -> ours
            if quantization is not None:
                insert_quantizers(model, options_from(quantization))
                self.sites = {self.naming.site(name) or name: name for name, _ in activation_quantizers(model)}

    @cached_property
    def unused(self) -> list[str]:
        """Official quantizers that never run and that ours does not have: those before the first layer of RDN."""
        blocks = range(self.network["num_block"]) if self.arch == "RDN" and self.sites else ()
        return [f"RDBs.{block}.convs.0.act" for block in blocks]

    def channels(self, site: str) -> int:
        """Return the channels that the released code gives the gate of an official quantizer."""
        features = int(self.network["num_feat"])
        if self.arch != "RDN":
            return features
        growth, layers = int(self.network["num_grow_ch"]), int(self.network["num_layer"])
        if site == "act":
            return DDTB_FUSED_CHANNELS
        layer = re.fullmatch(r"RDBs\.\d+\.convs\.(\d+)\.act", site)
        if layer:
            return features + int(layer[1]) * growth
        return features + layers * growth if site.endswith(".act2") else features

    def mean_shifts(self) -> State:
        """Return the tensors of EDSR's ``sub_mean`` and ``add_mean``."""
        if self.arch != "EDSR":
            return {}
        shift = self.network["img_range"] * torch.tensor(self.network["rgb_mean"], dtype=torch.float32)
        eye = torch.eye(3).view(3, 3, 1, 1)
        first, second = MEAN_SHIFTS
        return {
            **{f"{first}.weight": eye, f"{first}.bias": -shift},
            **{f"{second}.weight": eye.clone(), f"{second}.bias": shift},
        }

    def leave_out(self, start: str) -> None:
        """Do without the parameters whose names begin so."""
        self.parameters = {key: value for key, value in self.parameters.items() if not key.startswith(start)}

    def complete(self, path: Path, given: State) -> State:
        """Return an official state dict with what may be missing in it, such as EDSR's biases, after a check of all.

        Raises:
            CheckpointError: for keys that are missing or too many, with the nearest names, and for wrong shapes.
        """
        state = dict(given)
        for site, second in self._second_names():
            self._complete_pair(path, state, site, second)
        if not any(key in given for key in self.mean_shifts()):
            state = {**self.mean_shifts(), **state}
        for key, (_, like) in self.parameters.items():
            if key not in state and self.arch == "EDSR" and key.replace(".bias", ".weight") in state:
                state[key] = torch.zeros(like.shape)
        for site in self.unused:
            if self.method and not any(key.startswith(f"{site}.") for key in given):
                fresh = tensors.unused(self.method, self.channels(site))
                state |= {f"{site}.{name}": value for name, value in fresh.items()}
        for key in self._expected():  # torch before 0.4.1 had no such counter
            if key not in state and key.endswith(".num_batches_tracked"):
                state[key] = torch.tensor(0)
        self._compare_keys(path, state)
        self._compare_shapes(path, state)
        return state

    def to_ours(self, official: State) -> State:
        """Return our state dict of a complete official one."""
        ours = {key: official[name] for name, (key, _) in self.parameters.items()}
        if self.method is None or self.quantization is None:
            return ours
        for site, name in self.sites.items():
            part = _below(official, site, tensors.FIELDS[self.method])
            found = tensors.to_ours(self.method, part, self.quantization["bits"])
            ours |= {f"{name}.{key}": value for key, value in found.items()}
        return ours

    def to_official(self, ours: State) -> State:
        """Return the official state dict of ours."""
        official = {**self.mean_shifts(), **{name: ours[key] for name, (key, _) in self.parameters.items()}}
        if self.method is None:
            return official
        for site, name in self.sites.items():
            part = {key.removeprefix(f"{name}."): value for key, value in ours.items() if key.startswith(f"{name}.")}
            found = tensors.to_official(self.method, part, self.channels(site))
            official |= {f"{site}.{key}": value for key, value in found.items()}
        for site in self.unused:
            fresh = tensors.unused(self.method, self.channels(site))
            official |= {f"{site}.{key}": value for key, value in fresh.items()}
        for site, second in self._second_names():
            part = _below(official, site, tensors.FIELDS[self.method])
            official |= {f"{second}.{key}": value for key, value in part.items()}
        return official

    def _second_names(self) -> Iterator[tuple[str, str]]:
        for site in self.sites:
            second = self.naming.second_name(site)
            if second is not None:
                yield site, second

    def _complete_pair(self, path: Path, state: State, site: str, second: str) -> None:
        """Fill whichever of the two names of one quantizer is missing."""
        for field in tensors.FIELDS[self.method or "pams"]:
            one, other = f"{site}.{field}", f"{second}.{field}"
            if one in state and other in state and not same(state[one], state[other]):
                raise CheckpointError(
                    f"checkpoint '{path}': {one} and {other} are one tensor in the released code, and differ here; "
                    "delete the wrong one"
                )
            for there, missing in (one, other), (other, one):
                if there in state and missing not in state:
                    state[missing] = state[there]

    def _expected(self) -> list[str]:
        fields = tensors.FIELDS[self.method] if self.method else ()
        sites = [*self.sites, *self.unused, *(second for _, second in self._second_names())]
        return [*self.mean_shifts(), *self.parameters, *(f"{site}.{field}" for site in sites for field in fields)]

    def _compare_keys(self, path: Path, state: State) -> None:
        expected = self._expected()
        missing = [key for key in expected if key not in state]
        known = set(expected)
        extra = [key for key in state if key not in known]
        if not missing and not extra:
            return
        parts = [f"lacks {listing(missing, 3)}"] if missing else []
        near = did_you_mean(extra[0], missing or expected) if extra else ""
        parts += [f"has {listing(extra, 3)} besides"] if extra else []
        kind = f"{self.method.upper()} student" if self.method else "float network"
        raise CheckpointError(
            f"checkpoint '{path}' is not the {kind} of {self.arch} that it looks like ({self._size()}): it "
            f"{' and '.join(parts)}; give a whole, unchanged checkpoint{near}"
        )

    def _size(self) -> str:
        return f"{self.network['num_block']} blocks, {self.network['num_feat']} features, x{self.network['upscale']}"

    def _compare_shapes(self, path: Path, state: State) -> None:
        for key, (_, like) in self.parameters.items():
            if state[key].shape != like.shape:
                raise CheckpointError(
                    f"checkpoint '{path}': {key} has shape {tuple(state[key].shape)} and {self.arch} with "
                    f"{self._size()} needs {tuple(like.shape)}; give a checkpoint of this network"
                )
        with torch.device("meta"):
            gate = {name: Gate(1).state_dict()[key] for key, name in tensors.GATE.items()}
        for site in self.sites if self.method else ():
            part = _below(state, site, tensors.FIELDS[self.method or "pams"])
            dynamic = bool(part["is_dynamic"].any()) if "is_dynamic" in part else False
            for field, value in part.items():
                wanted = tuple(gate[field].shape) if field in gate else ()
                if field == "atten_c.1.weight":
                    inside = self.network["num_block"] * self.network["num_feat"] if site == "act" else None
                    channels = value.shape[1] if value.ndim == 4 and not dynamic else inside or self.channels(site)
                    wanted = (wanted[0], channels, 1, 1)
                if tuple(value.shape) != wanted and not (wanted == () and value.numel() == 1):
                    raise CheckpointError(
                        f"checkpoint '{path}': {site}.{field} has shape {tuple(value.shape)} and the released code "
                        f"{wanted or (1,)}; give an unchanged checkpoint"
                    )


def same(a: torch.Tensor | None, b: torch.Tensor) -> bool:
    """Whether two tensors are equal in dtype, shape and every bit."""
    if a is None or a.dtype != b.dtype or a.shape != b.shape:
        return False
    return torch.equal(a, b) or (a.is_floating_point() and bool(((a == b) | (a.isnan() & b.isnan())).all()))


def _below(state: State, site: str, fields: tuple[str, ...]) -> State:
    return {field: state[f"{site}.{field}"] for field in fields}
