"""Checkpoint files: no code from strangers, broken files named, other versions, atomic writing."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import srq_nni
from srq_nni import checkpoint
from srq_nni.archs.quantized_arch import QuantizedNetwork, build_float
from srq_nni.errors import CheckpointError
from tests.sr_data import NETWORK

DATA = Path(__file__).resolve().parent / "data"
PAMS = {"quantizer": "pams", "bits": 4}


@pytest.fixture
def float_file(tmp_path: Path) -> Path:
    path = tmp_path / "EDSR.pth"
    torch.save({"params": build_float(NETWORK).state_dict()}, path)
    return path


def saved(path: Path, **more: Any) -> Path:
    params = QuantizedNetwork(NETWORK, PAMS).state_dict()
    checkpoint.save({"params": params, "srq": checkpoint.metadata_of(NETWORK, PAMS), **more}, path)
    return path


def message(call: Callable[[], Any]) -> str:
    with pytest.raises(CheckpointError) as caught:
        call()
    text = str(caught.value)
    assert "\n" not in text
    return text


class Malicious:
    """Runs a command when it is unpickled, unless the reader refuses."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("legacy", [False, True])
def test_a_checkpoint_runs_no_code(tmp_path: Path, legacy: bool) -> None:
    path, trace = tmp_path / "evil.pth", tmp_path / "trace"
    if legacy:
        path.write_bytes(pickle.dumps({"params": Malicious(trace)}, protocol=2))
    else:
        torch.save({"params": Malicious(trace)}, path)
    for read in (checkpoint.read, srq_nni.load):
        assert "cannot be read" in message(lambda read=read: read(path))
    assert not trace.exists()


@pytest.mark.parametrize("share", [0.0, 0.01, 0.3, 0.9, 0.99])
def test_a_truncated_file_is_named(float_file: Path, share: float) -> None:
    content = float_file.read_bytes()
    float_file.write_bytes(content[: int(len(content) * share)])
    text = message(lambda: checkpoint.read(float_file))
    assert text.startswith(f"checkpoint '{float_file}' cannot be read (")
    assert text.endswith("); give a file of tensors written by torch.save")
    if share > 0:
        assert "(it is cut off or damaged; copy it again, or take an earlier one of the run);" in text


@pytest.mark.parametrize("seed", range(20))
def test_a_damaged_file_never_ends_in_a_traceback(float_file: Path, seed: int) -> None:
    """Flip bytes: either the reader notices, or what it returns is checked by the loader like any other file."""
    generator = torch.Generator().manual_seed(seed)
    content = bytearray(float_file.read_bytes())
    for position in torch.randint(len(content), (40,), generator=generator).tolist():
        content[position] ^= 0xFF
    float_file.write_bytes(content)
    try:
        checkpoint.load_weights(build_float(NETWORK), float_file)
    except CheckpointError as error:
        assert str(float_file) in str(error)


def test_text_and_a_folder_are_no_checkpoints(tmp_path: Path) -> None:
    (tmp_path / "text.pth").write_text("weights: none\n")
    assert "cannot be read" in message(lambda: checkpoint.read(tmp_path / "text.pth"))
    assert "is a folder; give the path of a .pth file in it" in message(lambda: checkpoint.read(tmp_path))


def test_a_newer_format_is_refused(tmp_path: Path) -> None:
    path = saved(tmp_path / "new.pth", srq={**checkpoint.metadata_of(NETWORK, PAMS), "format": 2})
    assert message(lambda: srq_nni.load(path)) == (
        f"checkpoint '{path}' has format 2 and this version reads up to 1; update srq-nni"
    )


@pytest.mark.parametrize("metadata", [None, "x", {"format": "1"}, {"format": 1}, {"format": 1, "network": NETWORK}])
def test_damaged_metadata_is_named(tmp_path: Path, metadata: Any) -> None:
    path = saved(tmp_path / "odd.pth", srq=metadata)
    assert message(lambda: srq_nni.load(path)) == (
        f"checkpoint '{path}' has damaged metadata; give a file as it was written by srq-nni"
    )


def test_a_failing_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "net.pth"
    checkpoint.save({"params": {"a": torch.zeros(1)}}, path)
    old = path.read_bytes()

    def full_disk(content: Any, file: Any) -> None:
        file.write(b"half of it")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full_disk)
    with pytest.raises(OSError, match="No space left"):
        checkpoint.save({"params": {"a": torch.ones(1)}}, path)
    assert path.read_bytes() == old
    assert [file.name for file in tmp_path.iterdir()] == ["net.pth"]


def test_save_makes_folders_and_ordinary_permissions(tmp_path: Path) -> None:
    path = tmp_path / "models" / "net.pth"
    checkpoint.save({"params": {}}, path)
    (tmp_path / "plain").touch()
    assert path.stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_version_1_keeps_loading() -> None:
    """``checkpoint_v1.pth`` was written by the first release; it must load, and compute what it computed then."""
    expected = torch.load(DATA / "checkpoint_v1_output.pt", weights_only=True)
    model = srq_nni.load(DATA / "checkpoint_v1.pth")
    with torch.no_grad():
        output = model(expected["input"])
    difference = (output - expected["output"]).abs()
    # Another CPU may round an activation at a tie the other way, which moves a few pixels by a step.
    assert (difference > 1e-5).float().mean() < 0.01
    assert difference.max() < 0.02
