"""A packed file that is crafted, damaged or cut off is one sentence, and a failing write leaves the old one."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

import srq_nni
from srq_nni.errors import CheckpointError, WriteError
from srq_nni.packed import pack
from tests.test_packed import message, packed, small

__all__ = ["packed"]  # a fixture


def rewritten(path: Path, change: Callable[[dict[str, Any], dict[str, Any]], None]) -> None:
    """Change the header and the metadata of a packed file."""
    content = path.read_bytes()
    length = struct.unpack("<Q", content[:8])[0]
    header = json.loads(content[8 : 8 + length])
    metadata = json.loads(header["__metadata__"]["srq"])
    change(header, metadata)
    if "__metadata__" in header:
        header["__metadata__"]["srq"] = json.dumps(metadata)
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + content[8 + length :])


WEIGHT = "body.0.conv1.weight"
CHANGES: list[tuple[Callable[[dict[str, Any], dict[str, Any]], Any], str]] = [
    (lambda h, m: h.pop("__metadata__"), "' is a safetensors file without metadata of srq-nni; give one from srq pack"),
    (lambda h, m: m.update(format=4), "' has format 4 and this version reads up to 3; update srq-nni"),
    (lambda h, m: m.pop("format"), "' has damaged metadata; give a file as srq pack wrote it"),
    (lambda h, m: m.update(extra=1), "' has damaged metadata (extra: Extra inputs are not permitted); give"),
    (lambda h, m: m["weights"][WEIGHT].update(bits=9), "(weights.body.0.conv1.weight.bits: Input should be less than"),
    (
        lambda h, m: m["weights"][WEIGHT].update(scale=0.0),
        "(weights.body.0.conv1.weight.scale: Input should be greater",
    ),
    (lambda h, m: m["weights"][WEIGHT].update(scale=[1.0, -1.0]), "weight.scale: Input should be a"),
    (lambda h, m: m["weights"][WEIGHT].update(scale=[]), "weight.scale: Input should be a"),
    (
        lambda h, m: m["weights"][WEIGHT].update(scale=[1.0] * 7),
        "(weights.body.0.conv1.weight: Value error, 7 scales for 8 channels); give a file as srq pack wrote it",
    ),
    (lambda h, m: m["weights"][WEIGHT].update(scale=float("nan")), "weight.scale: Input should be a"),
    (lambda h, m: m["weights"][WEIGHT].update(midrise=1), "weight.midrise: Input should be a valid boolean); give"),
    (
        lambda h, m: m["weights"][WEIGHT].update(midrise=True, maximum=2),
        "names: codes from -1 to 2 are no mid-rise grid, whose codes are odd; give odd ends",
    ),
    (lambda h, m: m["weights"][WEIGHT].update(midrise=True), "names: codes of shape (8, 8, 3, 3) at 1 bits take "),
    (lambda h, m: m["weights"][WEIGHT].update(shape=[-8, -8, 3, 3]), "weight.shape.0: Input should be greater"),
    (
        lambda h, m: m["weights"][WEIGHT].update(shape=[2**40, 2**40, 3, 3]),
        "does not fit the network it names: codes of",
    ),
    (
        lambda h, m: m["weights"][WEIGHT].update(shape=[9, 8, 8]),
        "' does not fit the network: body.0.conv1.weight has shape",
    ),
    (lambda h, m: m["weights"][WEIGHT].update(bits=3), "weight is not packed at the bits of its quantization; pack"),
    (lambda h, m: m["weights"].pop(WEIGHT), "weight is not packed at the bits of its quantization; pack the network"),
    (lambda h, m: m["weights"].update(ghost=m["weights"][WEIGHT]), "lacks the tensors ghost; pack the network again"),
    (lambda h, m: m["network"].update(type="EDRS"), "network_g: type 'EDRS' is not known; give a registered network"),
    (lambda h, m: m["network"].update(num_block=2), "' does not fit the network it names: body.1.conv1.weight, body."),
    (lambda h, m: m["quantization"].update(bits=4), "' does not fit the network it names: body.0.conv1.weight, body."),
    (lambda h, m: m["quantization"].update(bits=[]), "' does not fit the network it names: quantization: "),
    (lambda h, m: h.pop("conv_last.bias"), "cannot be read ("),
]


@pytest.mark.parametrize(("change", "expected"), CHANGES, ids=range(len(CHANGES)))
def test_a_crafted_file_is_one_sentence(change: Any, expected: str, packed: Path) -> None:
    rewritten(packed, change)
    assert expected in message(lambda: srq_nni.load(packed))


def test_codes_outside_their_grid_are_refused(packed: Path) -> None:
    content = packed.read_bytes()
    length = struct.unpack("<Q", content[:8])[0]
    start, end = (8 + length + place for place in json.loads(content[8 : 8 + length])[WEIGHT]["data_offsets"])
    packed.write_bytes(content[:start] + b"\xff" * (end - start) + content[end:])
    assert message(lambda: srq_nni.load(packed)) == (
        f"packed file '{packed}' does not fit the network it names: codes from 2 to 2 are not on a grid from -1 to 1; "
        "give codes of this grid"
    )


@pytest.mark.parametrize("name", ["conv_last.bias", "body.0.conv1.weight"])
def test_infinite_values_are_not_packed(name: str, tmp_path: Path) -> None:
    network = small()
    network.get_parameter(name).data.view(-1)[0] = float("inf")
    text = message(lambda: pack(network, tmp_path / "n.safetensors"))
    assert text == f"the network's '{name}' holds NaN or infinity; give a checkpoint without"
    assert not list(tmp_path.iterdir())


def test_infinite_values_are_refused(packed: Path) -> None:
    with safe_open(packed, "pt") as file:
        tensors, metadata = {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118
    tensors["conv_last.bias"][0] = float("inf")
    save_file(tensors, packed, metadata)
    assert message(lambda: srq_nni.load(packed)) == (
        f"packed file '{packed}' holds NaN or infinity in conv_last.bias; pack it again"
    )


@pytest.mark.parametrize("share", [0.0001, 0.01, 0.3, 0.999])
def test_a_truncated_file_is_one_sentence(share: float, packed: Path) -> None:
    content = packed.read_bytes()
    packed.write_bytes(content[: max(int(len(content) * share), 9)])
    assert message(lambda: srq_nni.load(packed)).startswith(f"packed file '{packed}' cannot be read (")


@pytest.mark.parametrize("seed", range(12))
def test_a_damaged_file_loads_or_is_one_sentence(seed: int, packed: Path) -> None:
    generator = torch.Generator().manual_seed(seed)
    content = bytearray(packed.read_bytes())
    end = len(content) if seed % 2 else 4000  # half of them in the header alone
    for place in torch.randint(0, end, (8,), generator=generator).tolist():
        content[place] ^= 1 << (place % 8)
    packed.write_bytes(bytes(content))
    try:
        srq_nni.load(packed)
    except CheckpointError as error:
        assert "\n" not in str(error)


def test_a_failing_write_leaves_the_old_file(packed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = packed.read_bytes()

    def full_disk(*args: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full_disk)
    with pytest.raises(WriteError) as error:
        pack(small(), packed)
    assert str(error.value) == (
        f"'{packed}' cannot be written: No space left on device, and the old file is unchanged; free space on that disk"
    )
    assert packed.read_bytes() == before
    assert [file.name for file in packed.parent.iterdir()] == [packed.name]
