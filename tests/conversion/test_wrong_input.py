"""What cannot be converted is named in one sentence, with what to do, and nothing is written."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from srq_nni import checkpoint
from srq_nni.archs.quantized_arch import QuantizedNetwork, build_float
from srq_nni.conversion import convert, convert_back
from srq_nni.errors import SRQError
from tests.conversion.converting import photograph, saved
from tests.conversion.released import State
from tests.conversion.states import released
from tests.sr_data import NETWORK

Change = Callable[[State], Any]


def refusal(call: Callable[[], Any], folder: Path) -> str:
    """Return the message of ``call``, which must not write."""
    before = sorted(folder.iterdir())
    with pytest.raises(SRQError) as caught:
        call()
    assert sorted(folder.iterdir()) == before
    assert "\n" not in str(caught.value)
    return str(caught.value)


def rename(old: str, new: str) -> Change:
    return lambda state: state.update({new: state.pop(old)})


def setting(key: str, value: Any) -> Change:
    return lambda state: state.update({key: value})


def without(start: str) -> Change:
    return lambda state: [state.pop(key) for key in list(state) if key.startswith(start)]


WRONG: list[tuple[str, str | None, str, Change, dict[str, Any], str]] = [
    ("edsr", "ddtb", "pams", setting("x", torch.ones(1)), {}, "looks like a DDTB student; use --from ddtb"),
    ("edsr", "pams", "edsr-pytorch", setting("x", torch.ones(1)), {}, "looks like a PAMS student; use --from pams"),
    ("srresnet", None, "edsr-pytorch", without("x"), {}, "looks like DDTB's SRResNet; use --from ddtb"),
    (
        "edsr",
        "pams",
        "pamss",
        without("x"),
        {},
        "format 'pamss' is not known; give one of edsr-pytorch, pams, ddtb; did",
    ),
    ("edsr", "pams", "pams", without("x"), {"bits": None}, "does not say its bits; give --bits"),
    ("edsr", "pams", "pams", without("x"), {"bits": 9}, "bits: 9 is not a bit width"),
    ("edsr", None, "pams", without("x"), {}, "is a float network; leave it out"),
    (
        "edsr",
        "ddtb",
        "ddtb",
        rename("body.0.quant_act3.alpha_upper", "body.0.quant_act3.alpha_uper"),
        {},
        "it lacks body.0.quant_act3.alpha_upper and has body.0.quant_act3.alpha_uper besides; give a whole, unchanged "
        "checkpoint; did you mean 'body.0.quant_act3.alpha_upper'?",
    ),
    ("edsr", "pams", "pams", without("body.1.body.0."), {}, "it lacks body.1.body.0.weight, body.1.body.0.bias; give"),
    ("edsr", "pams", "pams", without("head."), {}, "lacks head.0.weight, which tells its size"),
    ("rdn", "pams", "pams", without("RDBs.1.LFF"), {}, "it lacks RDBs.1.LFF.weight, RDBs.1.LFF.bias"),
    (
        "srresnet",
        "ddtb",
        "ddtb",
        setting("residual.0.act9.alpha", torch.ones(1)),
        {},
        "has residual.0.act9.alpha besides",
    ),
    ("edsr", "pams", "pams", setting("body.0.body.0.weight", torch.ones(8, 4, 3, 3)), {}, "needs (8, 8, 3, 3)"),
    ("edsr", "ddtb", "ddtb", setting("body.0.quant_act1.alpha_upper", torch.ones(8)), {}, "has shape (8,)"),
    ("edsr", "pams", "pams", setting("body.0.body.2.alpha", torch.ones(1)), {}, "are one tensor in the released code"),
    (
        "edsr",
        "pams",
        "pams",
        setting("sub_mean.weight", torch.ones(3, 3, 1, 1)),
        {},
        "sub_mean.weight is not the identity",
    ),
    ("edsr", "pams", "pams", setting("sub_mean.bias", torch.ones(3)), {}, "do not undo each other"),
    ("edsr", None, "pams", without("sub_mean"), {"bits": None}, "lacks sub_mean.weight"),
    (
        "edsr",
        "pams",
        "pams",
        lambda state: (without("sub_mean")(state), without("add_mean")(state)),
        {},
        "has no sub_mean, so it does not say which mean its network subtracts; give --rgb-mean",
    ),
    ("edsr", "pams", "pams", without("x"), {"img_range": 1.0}, "img_range: 1.0 contradicts"),
    ("edsr", "pams", "pams", without("x"), {"img_range": -1.0}, "img_range: -1.0 is not allowed"),
    ("edsr", "pams", "pams", without("x"), {"rgb_mean": (0, 0, 0)}, "rgb_mean: [0, 0, 0] contradicts"),
    ("edsr", "pams", "pams", without("x"), {"res_scale": 0.0}, "res_scale: 0.0 is not allowed"),
    ("rdn", "pams", "pams", without("x"), {"res_scale": 0.1}, "res_scale: it has no meaning for RDN; leave it out"),
    ("edsr", "pams", "pams", without("x"), {"body_only": True}, "body_only"),
    ("rdn", None, "pams", setting("UPNet.0.weight", torch.ones(16, 8, 5, 5)), {"bits": None}, "has a tail of its own"),
    ("edsr", None, "pams", setting("note", "text"), {"bits": None}, "holds no state dict (note is a str)"),
    ("srresnet", None, "ddtb", setting("relu.weight", torch.ones(8)), {"bits": None}, "does not say the range of its"),
]


@pytest.mark.parametrize(("arch", "method", "source", "change", "options", "expected"), WRONG)
def test_a_wrong_file_or_option_is_named(
    tmp_path: Path,
    arch: str,
    method: str | None,
    source: str,
    change: Change,
    options: dict[str, Any],
    expected: str,
) -> None:
    network = released(arch, method, photograph())
    change(network.state)
    if network.state.get("relu.weight", torch.ones(1)).numel() > 1:
        network.state = {
            key: torch.ones(8) if "relu" in key or key == "upscale.2.weight" else value
            for key, value in network.state.items()
        }
    path = saved(network, tmp_path / "official.pth.tar")
    given = {"bits": 4, **options}
    assert expected in refusal(lambda: convert(path, tmp_path / "ours.pth", source, **given), tmp_path)


def test_files_that_are_no_official_checkpoints(tmp_path: Path) -> None:
    files: dict[str, tuple[Any, str]] = {
        "ours": (
            {"params": {}, "srq": checkpoint.metadata_of(NETWORK, {"quantizer": "pams", "bits": 4})},
            "by srq-nni",
        ),
        "basicsr": (
            {"params": build_float(NETWORK).state_dict()},
            "has its weights under 'params', so BasicSR wrote it",
        ),
        "flat": (build_float(NETWORK).state_dict(), "has BasicSR's names already (conv_first.weight)"),
        "other": (
            {"layer.0.weight": torch.ones(1)},
            "its keys are layer.0.weight; give one whose keys start with head.",
        ),
        "empty": ({}, "holds no state dict (it is empty)"),
    }
    for name, (content, expected) in files.items():
        torch.save(content, tmp_path / name)
        assert expected in refusal(lambda name=name: convert(tmp_path / name, tmp_path / "o", "pams"), tmp_path), name
    whole = saved(released("edsr", "pams", photograph()), tmp_path / "whole").read_bytes()
    for name, data in (("cut", whole[: len(whole) // 2]), ("text", b"hello"), ("none", b"")):
        (tmp_path / name).write_bytes(data)
        text = refusal(lambda name=name: convert(tmp_path / name, tmp_path / "o", "pams", bits=4), tmp_path)
        assert "cannot be read" in text


def test_a_file_with_code_is_refused(tmp_path: Path) -> None:
    class Malicious:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (tmp_path / "trace",)

    torch.save({"state_dict": {"head.0.weight": Malicious()}}, tmp_path / "evil.pth.tar")
    for call in (
        lambda: convert(tmp_path / "evil.pth.tar", tmp_path / "o", "pams", bits=4),
        lambda: convert_back(tmp_path / "evil.pth.tar", tmp_path / "o", "pams"),
    ):
        assert "cannot be read" in refusal(call, tmp_path)


def test_the_output_is_checked_first(tmp_path: Path) -> None:
    path = saved(released("edsr", "pams", photograph()), tmp_path / "official.pth.tar")
    outputs = {
        ".": "is a folder; give the name of a file in it",
        "no/ours.pth": "does not exist; create it first",
        "official.pth.tar": "is the file that is read; give another name to write to",
        "old.pth": "exists; give another name, or --overwrite",
    }
    (tmp_path / "old.pth").write_text("old")
    for name, expected in outputs.items():
        text = refusal(lambda name=name: convert(path, tmp_path / name, "pams", bits=4), tmp_path)
        assert expected in text
    assert (tmp_path / "old.pth").read_text() == "old"
    convert(path, tmp_path / "old.pth", "pams", bits=4, overwrite=True)
    assert "params" in torch.load(tmp_path / "old.pth", weights_only=True)


BACK: list[tuple[dict[str, Any], str, str]] = [
    ({"quantizer": "pams", "bits": 4}, "pams", "has the wiring 'paper' and the released code computes another network"),
    ({"quantizer": "pams", "bits": 4, "wiring": "official"}, "ddtb", "is a PAMS student; use --to pams"),
    (
        {"quantizer": "pams", "bits": {"weight": 4, "activation": 8}, "wiring": "official"},
        "pams",
        "one number for both",
    ),
    ({"quantizer": "pams", "bits": 4, "wiring": "official", "head": 8}, "pams", "has head: 8"),
    ({"quantizer": "pams", "bits": 4, "wiring": "official", "skip": 8}, "pams", "has skip: 8"),
    ({"quantizer": "ddtb", "bits": 4, "wiring": "official", "percentile": 98.0}, "ddtb", "has percentile: 98.0"),
]


@pytest.mark.parametrize(("block", "target", "expected"), BACK)
def test_what_the_released_code_has_not_is_refused(
    tmp_path: Path, block: dict[str, Any], target: str, expected: str
) -> None:
    path = tmp_path / "net_g.pth"
    params = QuantizedNetwork(NETWORK, block).state_dict()
    checkpoint.save({"params": params, "srq": checkpoint.metadata_of(NETWORK, block)}, path)
    assert expected in refusal(lambda: convert_back(path, tmp_path / "o", target), tmp_path)


def test_float_networks_that_cannot_go_back(tmp_path: Path) -> None:
    def content(network: dict[str, Any]) -> dict[str, Any]:
        return {"params": build_float(network).state_dict()}

    tiny = {"num_feat": 8, "num_block": 2, "upscale": 2}
    cases = {
        "edsr-pytorch": (content(NETWORK), "has no sub_mean, so it does not say which mean its network subtracts"),
        "pams": (
            content({"type": "MSRResNet", **tiny}),
            "is no EDSR, RDN or SRResNet, for its keys are conv_first.weight",
        ),
        "ddtb": ({"params": QuantizedNetwork(NETWORK, BACK[0][0]).state_dict()}, "is quantized and does not say its"),
    }
    for target, (written, expected) in cases.items():
        torch.save(written, tmp_path / "float.pth")
        assert expected in refusal(
            lambda target=target: convert_back(tmp_path / "float.pth", tmp_path / "o", target), tmp_path
        )
    torch.save(content({"type": "SRResNet", **tiny}), tmp_path / "float.pth")
    text = refusal(lambda: convert_back(tmp_path / "float.pth", tmp_path / "o", "edsr-pytorch"), tmp_path)
    assert text.endswith("is an SRResNet, which EDSR-PyTorch does not have; use --to ddtb")


def test_a_full_disk_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = saved(released("edsr", "pams", photograph()), tmp_path / "official.pth.tar")
    shutil.copy(path, tmp_path / "old.pth")
    before = (tmp_path / "old.pth").read_bytes()

    def full(content: Any, file: Any) -> None:
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises((OSError, SRQError)):
        convert(path, tmp_path / "old.pth", "pams", bits=4, overwrite=True)
    assert (tmp_path / "old.pth").read_bytes() == before
    assert sorted(file.name for file in tmp_path.iterdir()) == ["official.pth.tar", "old.pth"]
