"""Small files for inference: quantized weights as packed codes of 2 to 8 bits, all else as it was trained.

A packed file is a safetensors file. Under ``srq`` its metadata hold one JSON text: ``format`` (version), ``network``
and ``quantization`` (the blocks of the option file) and ``weights``: for each packed weight its grid and shape. Such a
weight is stored under its name in the state dict as the bytes of ``bit_packing``; biases, batch norms, bounds and float
layers keep their dtype. What only training needs (statistics of the calibration) is left out.

A network that was packed and loaded computes the same bits, in fake quantization, in the integer simulator and in every
exported file.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes
from torch import nn

from srq_nni import checkpoint
from srq_nni.atomic import atomic_file, file_to_write
from srq_nni.checkpoint_fit import compare_keys
from srq_nni.errors import CheckpointError, QuantizationError, SRQError, listing
from srq_nni.quantization.bit_packing import pack_codes, unpack_codes
from srq_nni.quantization.calibration import IntensityRecorder, RunningMean
from srq_nni.quantization.gate import Gate
from srq_nni.quantization.grid import MAX_BITS, MIN_BITS, IntegerGrid
from srq_nni.quantization.layers import QuantizedLayer, add_stored_gates
from srq_nni.quantization.weight import GridWeight, WeightQuantizer

FORMAT_VERSION = 3  # 2: a weight may have a scale for each channel; 3: its codes may be odd; a file says the least
METADATA_KEY = "srq"
SUFFIX = ".safetensors"


Scale = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class StoredWeight(BaseModel):
    """Grid and shape of one packed weight, as the metadata spell them; a list of scales has one for each channel."""

    model_config = ConfigDict(extra="forbid", strict=True)

    bits: int = Field(ge=MIN_BITS, le=MAX_BITS)
    scale: Scale | Annotated[list[Scale], Field(min_length=1)]
    minimum: int = Field(ge=-(2**MAX_BITS), le=0)
    maximum: int = Field(ge=0, le=2**MAX_BITS)
    shape: list[Annotated[int, Field(ge=0)]] = Field(min_length=1, max_length=8)
    midrise: bool = False

    def grid(self) -> IntegerGrid:
        """Return the grid of the codes."""
        scale = tuple(self.scale) if isinstance(self.scale, list) else self.scale
        return IntegerGrid(scale, self.minimum, self.maximum, self.bits, midrise=self.midrise)

    @property
    def version(self) -> int:
        """The oldest format that has such a weight."""
        return 3 if self.midrise else 2 if isinstance(self.scale, list) else 1

    @model_validator(mode="after")
    def _one_scale_for_each_channel(self) -> StoredWeight:
        if isinstance(self.scale, list) and len(self.scale) != self.shape[0]:
            raise ValueError(f"{len(self.scale)} scales for {self.shape[0]} channels")
        return self


class StoredMetadata(BaseModel):
    """The JSON text of a packed file."""

    model_config = ConfigDict(extra="forbid", strict=True)

    format: int
    network: dict[str, Any]
    quantization: dict[str, Any]
    weights: dict[str, StoredWeight]


@dataclass(frozen=True)
class PackReport:
    """What ``pack`` wrote; ``str()`` is one paragraph.

    Attributes:
        path: the file.
        file_bytes: its size.
        float_bytes: size of the same numbers as float32.
        packed_bytes: of all packed weights.
        packed_float_bytes: of the same weights as float32.
        bits: number of packed weights by their bits.
    """

    path: Path
    file_bytes: int
    float_bytes: int
    packed_bytes: int
    packed_float_bytes: int
    bits: Mapping[int, int]

    def __str__(self) -> str:
        widths = ", ".join(f"{count} at {bits} bits" for bits, count in sorted(self.bits.items()))
        return (
            f"{self.path}: {self.file_bytes / 1e6:.2f} MB instead of {self.float_bytes / 1e6:.2f} MB in float32\n"
            f"packed weights: {widths}, {self.packed_bytes / 1e6:.3f} MB instead of "
            f"{self.packed_float_bytes / 1e6:.2f} MB (1/{self.packed_float_bytes / self.packed_bytes:.1f})"
        )


def pack(source: nn.Module | str | os.PathLike[str], path: str | os.PathLike[str]) -> PackReport:
    """Write a packed file of a quantized network; ``srq_nni.load``, ``export_onnx`` and ``srq export`` read it.

    Args:
        source: checkpoint of a QuantSRModel run, or a network that ``srq_nni.load`` or BasicSR's registry built.
        path: file to write, ``*.safetensors``, whole or not at all; its folder must exist.

    Raises:
        CheckpointError: if ``source`` cannot be read, does not say how it is built, is not quantized, or has a
            degenerate weight.
        WriteError: if ``path`` is a folder, in no folder, ``source`` itself or no ``*.safetensors``, or the disk
            refuses it.
    """
    target = file_to_write(path, *(() if isinstance(source, nn.Module) else (source,)), ending=SUFFIX)
    network = source if isinstance(source, nn.Module) else checkpoint.load(source)
    blocks = checkpoint.blocks_of(network)
    if blocks is None:
        raise CheckpointError(
            "the network does not say how it is built; give a checkpoint, or a network from srq_nni.load"
        )
    tensors, weights = _tensors_of(network)
    if not weights:
        raise CheckpointError("the network has no quantized weight to pack; give a quantized checkpoint")
    metadata = checkpoint.metadata_of(*blocks)
    version = max(weight.version for weight in weights.values())
    stored = {name: weight.model_dump(exclude_defaults=True) for name, weight in weights.items()}
    metadata |= {"format": version, "weights": stored}
    content = to_bytes(tensors, metadata={METADATA_KEY: json.dumps(metadata)})
    with atomic_file(target) as file:
        file.write(content)
    return _report(target, len(content), tensors, weights)


def load(path: str | os.PathLike[str]) -> nn.Module:
    """Return the network of a packed file in eval mode on the CPU, its weights on their grids.

    Raises:
        CheckpointError: if the file is missing, damaged, of a newer format, or does not fit the network it names.
    """
    from srq_nni.archs.quantized_arch import QuantizedNetwork

    path = Path(path).expanduser()
    metadata, tensors = _read(path)
    try:
        network = QuantizedNetwork(metadata.network, metadata.quantization)
        add_stored_gates(network, _gate_shapes(tensors, metadata.weights))
        state = {name: tensor for name, tensor in tensors.items() if name not in metadata.weights}
        for name, weight in metadata.weights.items():
            grid = weight.grid()
            codes = unpack_codes(tensors[name], grid, tuple(weight.shape))
            state[name] = grid.values(codes.float())
    except SRQError as error:
        raise CheckpointError(f"packed file '{path}' does not fit the network it names: {error}") from error
    _put_grids(network, metadata.weights, path)
    _load_state(network, state, path)
    return network.eval()


def _tensors_of(network: nn.Module) -> tuple[dict[str, torch.Tensor], dict[str, StoredWeight]]:
    """Return all tensors of a packed file by name, and the grids of those that are packed."""
    tensors, weights = {}, {}
    for name, tensor in _needed(network).items():
        if not torch.isfinite(tensor).all():
            raise CheckpointError(f"the network's '{name}' holds NaN or infinity; give a checkpoint without")
        tensors[name] = tensor.detach().cpu().clone().contiguous()
    for name, grid, codes in _on_grids(network):
        scale = list(grid.scale) if isinstance(grid.scale, tuple) else grid.scale
        weights[name] = StoredWeight(
            bits=grid.bits,
            scale=scale,
            minimum=grid.minimum,
            maximum=grid.maximum,
            shape=list(codes.shape),
            midrise=grid.midrise,
        )
        tensors[name] = pack_codes(codes, grid)
    return tensors, weights


def _on_grids(network: nn.Module) -> Iterator[tuple[str, IntegerGrid, torch.Tensor]]:
    """Yield (name in the state dict, grid, codes) of every weight that lies on a grid at inference."""
    for name, module in network.named_modules(remove_duplicate=False):
        if isinstance(module, QuantizedLayer) and module.weight_quantizer is not None:
            yield f"{name}.weight", *module.weight_quantizer.on_grid(module.get_parameter("weight").detach())
        elif isinstance(module, Gate):
            for part in ("reduce", "expand"):
                grid, weight = module.weight_grid(part), module.get_parameter(f"{part}.weight")
                yield f"{name}.{part}.weight", grid, grid.codes(weight.detach())


def _needed(network: nn.Module) -> dict[str, torch.Tensor]:
    """Return the state dict without the statistics of the calibration, and what the grids of the weights say."""
    left_out = (RunningMean, IntensityRecorder, WeightQuantizer)
    training = [f"{name}." for name, module in network.named_modules() if isinstance(module, left_out)]
    return {name: value for name, value in network.state_dict().items() if not name.startswith(tuple(training))}


def _report(
    path: Path, size: int, tensors: Mapping[str, torch.Tensor], weights: Mapping[str, StoredWeight]
) -> PackReport:
    counts: dict[int, int] = {}
    for weight in weights.values():
        counts[weight.bits] = counts.get(weight.bits, 0) + 1
    packed_float = sum(4 * torch.Size(weight.shape).numel() for weight in weights.values())
    packed = sum(tensors[name].numel() for name in weights)
    rest = sum(tensor.nbytes for name, tensor in tensors.items() if name not in weights)
    return PackReport(path, size, packed_float + rest, packed, packed_float, counts)


def _read(path: Path) -> tuple[StoredMetadata, dict[str, torch.Tensor]]:
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            text = (file.metadata() or {}).get(METADATA_KEY)
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
    except (SafetensorError, OSError, ValueError) as error:
        reason = str(error).splitlines()[0][:120] if str(error) else type(error).__name__
        raise CheckpointError(
            f"packed file '{path}' cannot be read ({reason}); give a file that srq pack wrote"
        ) from None
    if text is None:
        raise CheckpointError(f"'{path}' is a safetensors file without metadata of srq-nni; give one from srq pack")
    try:
        content = json.loads(text)
        version = content["format"]
        if isinstance(version, int) and version > FORMAT_VERSION:
            raise CheckpointError(
                f"packed file '{path}' has format {version} and this version reads up to {FORMAT_VERSION}; "
                "update srq-nni"
            )
        metadata = StoredMetadata.model_validate(content)
    except (ValueError, KeyError, TypeError, RecursionError) as error:  # ValidationError is a ValueError
        where = ""
        if isinstance(error, ValidationError):
            first = error.errors()[0]
            place = [str(part) for part in first["loc"] if not str(part).startswith(("constrained-", "list["))]
            where = f" ({'.'.join(place)}: {first['msg']})"  # without the kinds of a union
        raise CheckpointError(
            f"packed file '{path}' has damaged metadata{where}; give a file as srq pack wrote it"
        ) from None
    missing = [name for name in metadata.weights if name not in tensors]
    if missing:
        raise CheckpointError(f"packed file '{path}' lacks the tensors {listing(missing, 3)}; pack the network again")
    broken = [name for name, tensor in tensors.items() if tensor.is_floating_point() and not tensor.isfinite().all()]
    if broken:
        raise CheckpointError(f"packed file '{path}' holds NaN or infinity in {listing(broken, 3)}; pack it again")
    return metadata, tensors


def _gate_shapes(tensors: Mapping[str, torch.Tensor], weights: Mapping[str, StoredWeight]) -> dict[str, torch.Tensor]:
    """Return empty tensors of the shapes that packed gates have, by which ``add_stored_gates`` finds them."""
    gates = [name for name in tensors if name in weights and name.endswith(".gate.reduce.weight")]
    return {name: torch.empty(weights[name].shape, device="meta") for name in gates}


def _put_grids(network: nn.Module, weights: Mapping[str, StoredWeight], path: Path) -> None:
    """Replace the weight quantizers by grids: quantizing a weight on its grid again could move it by a rounding."""
    expected = {name: grid.bits for name, grid, _ in _on_grids(network)}
    wrong = [name for name, bits in expected.items() if name not in weights or weights[name].bits != bits]
    wrong += [name for name in weights if name not in expected]
    if wrong:
        raise CheckpointError(
            f"packed file '{path}' does not fit the network it names: {listing(wrong, 3)} "
            "is not packed at the bits of its quantization; pack the network again"
        )
    for name, module in network.named_modules(remove_duplicate=False):
        if isinstance(module, QuantizedLayer) and module.weight_quantizer is not None:
            module.weight_quantizer = GridWeight(weights[f"{name}.weight"].grid())
        elif isinstance(module, Gate):
            module.grids = {part: weights[f"{name}.{part}.weight"].grid() for part in ("reduce", "expand")}


def _load_state(network: nn.Module, state: Mapping[str, torch.Tensor], path: Path) -> None:
    expected = _needed(network)
    compare_keys(path, expected, state)
    dtypes = [name for name, value in expected.items() if state[name].dtype != value.dtype]
    if dtypes:
        raise CheckpointError(
            f"packed file '{path}' does not fit the network it names: {dtypes[0]} is {state[dtypes[0]].dtype} and the "
            f"network has {expected[dtypes[0]].dtype}; pack the network again"
        )
    try:
        network.load_state_dict({**network.state_dict(), **state})
    except (RuntimeError, QuantizationError) as error:
        raise CheckpointError(
            f"packed file '{path}' does not fit the network it names: {str(error).splitlines()[-1].strip()}"
        ) from None
