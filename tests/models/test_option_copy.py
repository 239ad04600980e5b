"""The option file in an experiment's folder: what the run had, with what ``--force_yml`` changed."""

from __future__ import annotations

from pathlib import Path

import pytest

from srq_nni.errors import WriteError
from srq_nni.models.option_copy import write
from srq_nni.models.options import read_options

TEXT = "# 4 bits\nname: tiny\nquantization: {quantizer: pams, bits: 4}  # é\ntrain: {optim_g: {lr: 1e-4}}\n"
COMMAND = "srq train -opt train.yml"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "train.yml"
    path.write_text(TEXT, encoding="utf-8")
    (tmp_path / "experiment").mkdir()
    return path


def test_without_overrides_it_is_the_file_itself(file: Path) -> None:
    write(file, file.parent / "experiment", COMMAND, [])
    copied = (file.parent / "experiment/train.yml").read_text(encoding="utf-8")
    assert copied.startswith("# GENERATE TIME: ") and f"# CMD:\n# {COMMAND}\n\n" in copied
    assert copied.endswith(TEXT)


def test_overrides_are_in_it(file: Path) -> None:
    overrides = ["quantization:bits=2", "train:optim_g:lr=1e-5", "name=other"]
    write(file, file.parent / "experiment", f"{COMMAND} --force_yml {' '.join(overrides)}", overrides)
    copied = file.parent / "experiment/train.yml"
    assert read_options(copied) == read_options(file, overrides)
    assert read_options(copied)["quantization"] == {"quantizer": "pams", "bits": 2}
    assert "--force_yml quantization:bits=2" in copied.read_text(encoding="utf-8")


def test_a_folder_that_is_missing(file: Path) -> None:
    with pytest.raises(WriteError, match="create its folder first"):
        write(file, file.parent / "missing", COMMAND, [])
    assert file.read_text(encoding="utf-8") == TEXT
