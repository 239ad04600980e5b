"""``srq summary``: what it prints and writes, and one sentence for each wrong input."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from srq_nni.cli.main import main
from tests.sr_data import NETWORK, float_checkpoint, write_yaml

OPTIONS = {"network_g": NETWORK, "quantization": {"quantizer": "pams", "bits": 4}}


@pytest.fixture
def refused(work_folder: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Return a function that runs ``srq summary`` and returns the one sentence it ends with."""

    def run(*arguments: str) -> str:
        before = sorted(work_folder.rglob("*"))
        with pytest.raises(SystemExit) as ended:
            main(["summary", *arguments])
        captured = capsys.readouterr()
        assert (ended.value.code, captured.out) == (2, "")
        assert captured.err.startswith("srq: error: ") and captured.err.count("\n") == 1, captured.err
        assert sorted(work_folder.rglob("*")) == before, "something was written"
        return captured.err.removeprefix("srq: error: ").rstrip("\n")

    return run


WRONG: list[tuple[list[str], str]] = [
    ([], "srq summary wants one thing to look at; give -opt FILE.yml, a checkpoint or an ONNX file"),
    (["-opt", "o.yml", "net.pth"], "srq summary wants one thing to look at; give -opt FILE.yml, a checkpoint"),
    (["-opt", "oo.yml"], "option file 'oo.yml' does not exist; give the path of a YAML file; did you mean 'o.yml'?"),
    (["-opt", "o.yml", "--force_yml", "quantization:bits=9"], "quantization: bits: 9 is not a bit width"),
    (["-opt", "o.yml", "--force_yml", "quantization:quantizer=pam"], "did you mean 'pams'?"),
    (["-opt", "o.yml", "--force_yml", "network_g:type=EDRS"], "did you mean 'EDSR'?"),
    (["-opt", "o.yml", "--force_yml", "network_g=3"], "key 'network_g' is missing or no block; add it"),
    (["-opt", "o.yml", "--force_yml", "quantization=4"], "quantization: 4 is not a block; give at least 'quantizer'"),
    (["-opt", "o.yml", "--json", "no/out.json"], "the folder 'no' of 'no/out.json' does not exist; create it first"),
    (["-opt", "o.yml", "--json", "."], "'.' is a folder; give the name of a file in it"),
    (["nope.pth"], "checkpoint 'nope.pth' does not exist; give the path of a .pth file"),
    (["float.pth"], "checkpoint 'float.pth' does not say which network it is; give a quantized one"),
    (["nope.onnx"], "'nope.onnx' cannot be read: No such file or directory; give an ONNX file written by export_onnx"),
    (["text.onnx"], "'text.onnx' is not an ONNX file, or damaged; write it again with srq export"),
    (["add.onnx"], "'add.onnx': it holds no convolution with a constant weight; give a super-resolution network"),
    (["flat.onnx"], "'flat.onnx': its output is no image (N, C, H, W); give a super-resolution network"),
    (["float.pth", "--no-probe"], "--no-probe has no meaning without -opt; leave it out"),
    (["float.pth", "--force_yml", "a:b=1"], "--force_yml has no meaning without -opt; leave it out"),
]


@pytest.mark.parametrize(("arguments", "expected"), WRONG)
def test_wrong_input_is_one_sentence(
    refused: Callable[..., str], work_folder: Path, arguments: list[str], expected: str
) -> None:
    write_yaml(work_folder / "o.yml", OPTIONS)
    float_checkpoint(work_folder / "float.pth")
    (work_folder / "text.onnx").write_text("hello")
    _graphs(work_folder)
    assert expected in refused(*arguments)


def _graphs(folder: Path) -> None:
    """Write two ONNX files without an image network in them: an addition, and a convolution whose output is flat."""
    onnx = pytest.importorskip("onnx")
    helper, kind = onnx.helper, onnx.TensorProto.FLOAT
    image = helper.make_tensor_value_info("x", kind, ["n", 3, "h", "w"])
    weight = helper.make_tensor("w", kind, [1, 3, 1, 1], [1.0, 1.0, 1.0])
    add = helper.make_node("Add", ["x", "x"], ["y"])
    conv, flat = helper.make_node("Conv", ["x", "w"], ["z"]), helper.make_node("Flatten", ["z"], ["y"])
    for name, nodes, output in (("add", [add], ["n", 3, "h", "w"]), ("flat", [conv, flat], ["n", "k"])):
        result = helper.make_tensor_value_info("y", kind, output)
        onnx.save(
            helper.make_model(helper.make_graph(nodes, name, [image], [result], [weight])), folder / f"{name}.onnx"
        )


def test_table_and_json(work_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_yaml(work_folder / "o.yml", OPTIONS)
    main(["summary", "-opt", "o.yml", "--no-probe", "--json", "s.json"])
    text = capsys.readouterr().out
    assert text.startswith("o.yml: EDSR x2, PAMS, wiring paper\n")
    data = json.loads((work_folder / "s.json").read_text())
    assert (data["format"], data["network"], data["scale"], data["training"]) == (1, "EDSR", 2, None)
    rows = {row["name"]: row for row in data["rows"]}
    assert rows["body.0.conv2"]["weight_bits"] == rows["body.0.conv2"]["activation_bits"] == 4
    assert rows["body.0.conv2"]["engines"]["openvino"]["runs_in_integers"] is True
    assert rows["conv_last"]["engines"]["openvino"]["reason"] == "its weight is not quantized"
    assert data["totals"]["macs"] == sum(row["macs"] for row in data["rows"])
    assert data["totals"]["bops"] == sum(row["bops"] for row in data["rows"])
    assert f"ratio {data['totals']['ratio']:.2f}" in text
    assert sorted(file.name for file in work_folder.iterdir()) == ["o.yml", "s.json"]


def test_every_row_on_request(work_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = yaml.safe_load(Path(write_yaml(work_folder / "o.yml", OPTIONS)).read_text())
    options["network_g"]["num_block"] = 3
    write_yaml(work_folder / "o.yml", options)
    main(["summary", "-opt", "o.yml", "--no-probe"])
    assert "\nbody.0..2.conv1 " in capsys.readouterr().out
    main(["summary", "-opt", "o.yml", "--no-probe", "--all"])
    assert capsys.readouterr().out.count("\nbody.") == 6
