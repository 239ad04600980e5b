"""Option files: plain YAML only, numbers as users write them, overrides that are parsed and never evaluated."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from srq_nni.errors import OptionError
from srq_nni.models.options import OptionLoader, apply_override, read_options


def written(folder: Path, text: str) -> Path:
    path = folder / "train.yml"
    path.write_text(text)
    return path


def sentence(path: Path, overrides: tuple[str, ...] = ()) -> str:
    with pytest.raises(OptionError) as caught:
        read_options(path, overrides)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4),
        ("1E5", 1e5),
        ("-2e+3", -2000.0),
        (".5e-1", 0.05),
        ("5.e3", 5000.0),
        ("!!float 1e-4", 1e-4),
        ("0.9", 0.9),
        ("300", 300),
        ("1e", "1e"),
        ("12:30:45", "12:30:45"),
        ("1:30.5", "1:30.5"),
        ("e5", "e5"),
        ("'1e-4'", "1e-4"),
        ("x1e4", "x1e4"),
        ("~", None),
        ("true", True),
        ("[0.9, 0.999]", [0.9, 0.999]),
    ],
)
def test_values(text: str, value: Any) -> None:
    got = yaml.load(f"key: {text}", Loader=OptionLoader)["key"]
    assert got == value and type(got) is type(value)


TAGS = (
    "!!python/object/apply:pathlib.Path.touch [!!python/object/apply:pathlib.Path [{path}]]",
    "!!python/object/new:os.system ['touch {path}']",
    "!!python/name:os.system",
    "!!python/module:os",
    "!anything {{}}",
)


@pytest.mark.parametrize("tag", TAGS)
def test_tags_are_refused_and_not_run(tmp_path: Path, tag: str) -> None:
    trace = tmp_path / "trace"
    path = written(tmp_path, f"name: {tag.format(path=trace)}\n")
    text = sentence(path)
    assert text.startswith(f"option file '{path}' is not plain YAML (could not determine a constructor for the tag")
    assert not trace.exists()


@pytest.mark.parametrize("tag", TAGS[:2])
def test_tags_in_overrides_are_refused_and_not_run(tmp_path: Path, tag: str) -> None:
    trace = tmp_path / "trace"
    entry = f"name={tag.format(path=trace)}"
    path = written(tmp_path, "name: x\n")
    assert sentence(path, (entry,)) == f"--force_yml '{entry}': the value is not plain YAML; quote it"
    assert not trace.exists()


def test_aliases_and_merges_stay_possible(tmp_path: Path) -> None:
    path = written(tmp_path, "a: &a {x: 1, y: 2}\nb: {<<: *a, y: 3}\n")
    assert read_options(path)["b"] == {"x": 1, "y": 3}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a: [1, 2", "is not plain YAML (while parsing a flow sequence"),
        ("a: b: c", "is not plain YAML (mapping values are not allowed here"),
        ("a: 1\n\tb: 2", "is not plain YAML ("),
        ("- a\n- b", "holds no mapping (lines of KEY: VALUE); start from a file in basicsr_configs/"),
        ("just words", "holds no mapping (lines of KEY: VALUE); start from a file in basicsr_configs/"),
        ("", "holds no mapping (lines of KEY: VALUE); start from a file in basicsr_configs/"),
        ("day: 2024-99-99", "has a value that cannot be read (month must be in 1..12"),
        ("lr: !!float fast", "has a value that cannot be read (could not convert string to float: 'fast'); mend it"),
        ("a: " + "[" * 3000, "has a value that cannot be read ("),
        ("a: 1\n---\nb: 2", "is not plain YAML (expected a single document"),
    ],
)
def test_unreadable_files_are_one_sentence(tmp_path: Path, text: str, expected: str) -> None:
    path = written(tmp_path, text)
    assert sentence(path).startswith(f"option file '{path}' {expected}")


def test_binary_and_missing_files(tmp_path: Path) -> None:
    path = tmp_path / "train.yml"
    path.write_bytes(b"\xff\xfe\x80")
    assert sentence(path) == f"option file '{path}' is not text; give a YAML file in UTF-8"
    assert sentence(tmp_path / "trian.yml") == (
        f"option file '{tmp_path / 'trian.yml'}' does not exist; give the path of a YAML file; "
        "did you mean 'train.yml'?"
    )
    assert sentence(tmp_path / "no" / "x.yml").endswith("does not exist; give the path of a YAML file")
    assert sentence(tmp_path) == f"option file '{tmp_path}' is a folder; give the path of a YAML file in it"


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        ("name=new", {"name": "new"}),
        ("train:lr=1e-4", {"train": {"lr": 1e-4, "betas": [1, 2]}}),
        (" train : lr = 3 ", {"train": {"lr": 3, "betas": [1, 2]}}),
        ("train:new={a: 1}", {"train": {"lr": 1, "betas": [1, 2], "new": {"a": 1}}}),
        ("train:betas=[0.5, 0.6]", {"train": {"lr": 1, "betas": [0.5, 0.6]}}),
        ("name=a=b", {"name": "a=b"}),
        ("name=None", {"name": None}),
        ("name=~", {"name": None}),
        ("name=", {"name": None}),
        ("name=__import__('os').getcwd()", {"name": "__import__('os').getcwd()"}),
        ("name=[__import__('os').getcwd()]", {"name": ["__import__('os').getcwd()"]}),
        ("extra=1", {"extra": 1}),
    ],
)
def test_overrides(entry: str, expected: dict[str, Any]) -> None:
    options = {"name": "old", "train": {"lr": 1, "betas": [1, 2]}}
    apply_override(options, entry)
    assert options == {"name": "old", "train": {"lr": 1, "betas": [1, 2]}, **expected}


def test_a_key_with_code_is_only_a_key() -> None:
    """BasicSR builds a statement from the keys and executes it."""
    options: dict[str, Any] = {"name": "old"}
    apply_override(options, 'name"];raise SystemExit(3);["x=1')
    assert options == {"name": "old", 'name"];raise SystemExit(3);["x': 1}


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        ("name", "--force_yml 'name' is not KEY:KEY=VALUE; write for example quantization:bits=2"),
        ("=3", "--force_yml '=3' is not KEY:KEY=VALUE; write for example quantization:bits=2"),
        ("train:=3", "--force_yml 'train:=3' is not KEY:KEY=VALUE; write for example quantization:bits=2"),
        (
            "trian:lr=3",
            "--force_yml 'trian:lr=3': the options have no block 'trian'; name an existing one; did you mean 'train'?",
        ),
        (
            "train:optim:lr=3",
            "--force_yml 'train:optim:lr=3': the options have no block 'train:optim'; name an existing one",
        ),
        ("name:x=3", "--force_yml 'name:x=3': the options have no block 'name'; name an existing one"),
        ("name=[1", "--force_yml 'name=[1': the value is not plain YAML; quote it"),
        ("name=2024-99-99", "--force_yml 'name=2024-99-99': the value is not plain YAML; quote it"),
    ],
)
def test_wrong_overrides_are_exact_sentences(tmp_path: Path, entry: str, expected: str) -> None:
    path = written(tmp_path, "name: old\ntrain: {lr: 1}\n")
    text = sentence(path, (entry,))
    assert text.removesuffix("; did you mean 'name'?") == expected


def test_overrides_of_a_file_without_mapping(tmp_path: Path) -> None:
    assert "holds no mapping" in sentence(written(tmp_path, "- a\n"), ("name=1",))
