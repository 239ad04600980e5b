"""The JSON schema of option files: it is what the code says, every file here meets it, and a run judges as it does."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from srq_nni.cli.main import main
from srq_nni.compression.options import QuantizationOptions, options_from
from srq_nni.compression.profiles import SWITCHES
from srq_nni.errors import OptionError
from srq_nni.models.json_schema import json_schema
from srq_nni.models.options import read_options
from srq_nni.models.schema import OptionFile, Train, check_kinds
from tests.sr_data import REPOSITORY, Missing, changed, evaluation_options, train_options

FOLDER = REPOSITORY / "basicsr_configs"
FILES = sorted(FOLDER.rglob("*.yml"))
REFERENCE = "# yaml-language-server: $schema="
VALIDATOR = jsonschema.Draft202012Validator(json_schema())


def complaint(options: dict[str, Any]) -> str | None:
    error = jsonschema.exceptions.best_match(VALIDATOR.iter_errors(options))
    return None if error is None else error.message


def test_the_committed_file_is_what_the_code_generates(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["schema", "-o", str(tmp_path / "schema.json")])
    written = (tmp_path / "schema.json").read_text()
    assert written == (FOLDER / "schema.json").read_text(), "run: srq schema -o basicsr_configs/schema.json"
    main(["schema"])
    assert capsys.readouterr().out == written


def test_it_is_a_schema() -> None:
    jsonschema.Draft202012Validator.check_schema(json_schema())
    assert json_schema()["$schema"] == jsonschema.Draft202012Validator.META_SCHEMA["$id"]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_each_file_names_the_schema_and_meets_it(path: Path) -> None:
    first = path.read_text().splitlines()[0]
    assert first.startswith(REFERENCE)
    assert (path.parent / first.removeprefix(REFERENCE)).resolve() == FOLDER / "schema.json"
    assert complaint(read_options(path)) is None


def test_other_option_files_of_the_repository_meet_it_too() -> None:
    others = sorted((REPOSITORY / "benchmarks" / "float_edsr").glob("*.yml"))
    assert others
    for path in others:
        assert complaint(read_options(path)) is None, path


def entries(schema: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for name, part in [("OptionFile", schema), *schema["$defs"].items()]:
        for key, entry in part.get("properties", {}).items():
            yield f"{name}: {key}", entry


def test_every_key_is_described() -> None:
    schema = json_schema()
    silent = [where for where, entry in entries(schema) if "description" not in entry and "$ref" not in str(entry)]
    assert silent == []
    assert not [where for where, entry in entries(schema) if "\n" in entry.get("description", "")]
    block = schema["$defs"]["QuantizationOptions"]
    assert set(block["properties"]) == set(QuantizationOptions.model_fields) and block["additionalProperties"] is False
    for key in SWITCHES:
        assert "default" in block["properties"][key], key
    for key in ("optim_q", "skt_opt", "amp", "channels_last"):
        assert key in schema["$defs"]["Train"]["properties"]
    assert {"base_model", "model_type", "quantization"} <= set(schema["properties"])
    assert "pretrain_network_t" in schema["$defs"]["PathBlock"]["properties"]


def test_ranges_and_names_are_in_it() -> None:
    definitions = json_schema()["$defs"]
    block = definitions["QuantizationOptions"]["properties"]
    assert block["quantizer"]["enum"] == ["pams", "ddtb"]
    assert block["wiring"]["enum"] == ["paper", "deploy", "tensorrt", "official"]
    assert block["bits"]["anyOf"][0] == {"type": "integer", "minimum": 2, "maximum": 8}
    assert (definitions["Train"]["properties"]["ema_decay"]["minimum"], 1) == (0, 1)
    assert "DDTB_RDN" in definitions["Network"]["properties"]["type"]["anyOf"][0]["enum"]


@pytest.fixture
def options(tmp_path: Path) -> dict[str, Any]:
    return train_options(tmp_path, str(tmp_path / "float.pth"))


def test_options_of_the_tests_meet_it(options: dict[str, Any], tmp_path: Path) -> None:
    assert complaint(options) is None
    assert complaint(evaluation_options(tmp_path, "x.pth")) is None
    stock = {**changed(options, "quantization", Missing), "model_type": "SRModel"}
    assert complaint(stock) is None
    own = {"my_key": 1, "network_x": {"type": "Own"}, "train": {**options["train"], "own_opt": {"weight": 3}}}
    assert complaint({**options, **own}) is None


VALUES = (None, 3, -1, 0, 9, 0.5, "word", "", [], [1, "a"], {}, {"type": "L1Loss"}, True, "auto", "ddtb", "SRModel")


def leaves(block: dict[str, Any], prefix: str = "") -> Iterator[str]:
    for key, value in block.items():
        yield f"{prefix}{key}"
        if isinstance(value, dict):
            yield from leaves(value, f"{prefix}{key}:")


def run_refuses(options: dict[str, Any]) -> str | None:
    """Return what a run says of the keys that the schema describes, if anything."""
    try:
        OptionFile.model_validate(options)  # says of missing keys as well, which a run checks elsewhere
    except ValueError as error:
        return str(error)
    try:
        check_kinds(options)
        if "quantization" in options:
            options_from(options["quantization"])
    except OptionError as error:
        return str(error)
    if options["model_type"] == "QuantSRModel" and options.get("quantization") is None:
        return "the block is missing"
    if options["model_type"] == "SRModel" and {"quantization", "base_model"} & set(options):
        return "SRModel ignores the block"
    return None


def test_a_run_and_an_editor_judge_alike(options: dict[str, Any]) -> None:
    """Every key with every value: what the schema refuses a run refuses, and the other way round."""
    options["quantization"] |= {"wiring": "paper", "calibration": "max", "head": 8}
    options["base_model"] = "SRModel"
    differing = []
    for key in leaves(options):
        for value in (*VALUES, Missing):
            case = changed(options, key, value)
            if VALIDATOR.is_valid(case) != (run_refuses(case) is None):
                differing.append((key, value, complaint(case), run_refuses(case)))
    of_a_run_alone = [entry for entry in differing if entry[2] is None and belongs_to_a_run(*entry[:2])]
    assert [entry for entry in differing if entry not in of_a_run_alone] == []


def belongs_to_a_run(key: str, value: Any) -> bool:
    """What a schema cannot say, or needs no saying."""
    return (key, value) in (("quantization:config_list", []), ("quantization:bits", None))


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("quantization:bits", 9, "quantization: bits: 9 is not a bit width"),
        ("num_gpu", "two", "num_gpu: 'two' is not allowed; give a whole number from 0, or auto"),
        (
            "manual_seed",
            2**32,
            "manual_seed: 4294967296 is not allowed; give a whole number from 0 to below 4294967296",
        ),
        ("manual_seed", True, "manual_seed: True is not allowed; give a whole number from 0 to below 4294967296"),
        ("name", "", "name: '' is not allowed; give a text"),
        ("scale", 0, "scale: 0 is not allowed; give a whole number from 1"),
        ("datasets", [], "datasets: [] is not a block of keys; add its keys below it, indented"),
        ("datasets:train:gt_size", 0, "datasets: train: gt_size: 0 is not allowed; give a whole number from 1"),
        ("datasets:train:prefetch_mode", "gpu", "prefetch_mode: 'gpu' is not allowed; give one of cpu, cuda"),
        ("train:ema_decay", 1, "train: ema_decay: 1 is not allowed; give a number from 0 to below 1"),
        ("train:amp", "bfloat", "train: amp: 'bfloat' is not allowed; give bfloat16"),
        ("train:optim_g:betas", [0.9, "b"], "train: optim_g: betas[1]: 'b' is not allowed; give a number"),
        ("train:optim_q", 0.1, "train: optim_q: 0.1 is not a block of keys; add its keys below it, indented"),
        ("train:optim_q:betas", [0, 1], "train: optim_q: key 'betas' is not known; allowed are relative_lr, lr"),
        (
            "val:metrics:psnr",
            "psnr",
            "val: metrics: psnr: 'psnr' is not a block of keys; add its keys below it, indented",
        ),
        ("logger:use_tb_logger", "yes", "logger: use_tb_logger: 'yes' is not allowed; give true or false"),
        ("path:resume_state", 3, "path: resume_state: 3 is not allowed; give a text"),
    ],
)
def test_a_wrong_value_is_one_exact_sentence(options: dict[str, Any], key: str, value: Any, message: str) -> None:
    options["train"]["optim_q"] = {"lr": 0.01}
    case = changed(options, key, value)
    assert complaint(case) is not None
    with pytest.raises(OptionError) as caught:
        check_kinds(case)
        options_from(case["quantization"])
    assert message in str(caught.value)


def test_keys_that_are_no_texts(options: dict[str, Any]) -> None:
    for key in (1, None, 0.5):
        with pytest.raises(OptionError) as caught:
            check_kinds({**options, key: 1})
        assert str(caught.value) == f"key {key} is not a text; quote it, or delete it"


def test_defaults_are_those_of_the_code() -> None:
    properties = json.loads((FOLDER / "schema.json").read_text())["$defs"]["Train"]["properties"]
    assert properties["skt_opt"]["default"] is None and Train.model_fields["warmup_iter"].default == -1
    assert properties["optim_q"]["default"] == {"relative_lr": 0.002, "lr": None}
