"""``srq bench`` from the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from srq_nni.cli.main import main
from srq_nni.speedup import export_onnx
from tests.speedup.networks import edsr

pytest.importorskip("openvino")
pytest.importorskip("onnx")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    export_onnx(edsr("pams", 4), tmp_path / "model.onnx")
    return tmp_path


def test_table_and_json(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["bench", "model.onnx", "--engine", "openvino", "--size", "12x20", "--repeats", "2", "--json", "out.json"])
    captured = capsys.readouterr()
    assert captured.out.startswith("model.onnx, 20x12 pixels, 1 thread(s), medians of 2 in turns\n")
    assert captured.err == ""
    content = json.loads(Path("out.json").read_text())
    assert (content["size"], content["threads"], content["repeats"]) == ([12, 20], 1, 2)
    assert [row["precision"] for row in content["rows"]][-1] == "int8 + bfloat16-tail"


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ("model.onnx --size 12", "--size: '12' is not allowed; give height x width, such as 128x128"),
        ("model.onnx --size 0x8", "size: (0, 8) is not allowed; give height and width in pixels"),
        ("model.onnx --repeats 0", "repeats: 0 is not allowed; give a number from 1"),
        ("model.onnx --threads -2", "--threads: -2 is not allowed; give a number from 1, or 0 for the engine's choice"),
        ("model.onnx --engine cuda", "engine: 'cuda' is not known; give one of openvino, onnxruntime, tensorrt"),
        ("modle.onnx", "'modle.onnx' cannot be read: No such file or directory"),
        ("model.onnx --json no/out.json", "the folder 'no' of 'no/out.json' does not exist; create it first"),
    ],
)
def test_wrong_input(arguments: str, text: str, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["bench", *arguments.split()])
    assert ended.value.code == 2
    assert capsys.readouterr().err.startswith(f"srq: error: {text}")
    assert [path.name for path in here.iterdir()] == ["model.onnx"]
