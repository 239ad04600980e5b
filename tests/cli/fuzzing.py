"""Wrong option files and command lines by the thousand: ``python -m tests.cli.fuzzing 10000`` runs so many.

Case n is always the same one. It may be accepted, or refused with status 2 and one line; what is not allowed is a
traceback, more than a minute, a temporary file that stays, or a file that a refused command wrote.
"""

from __future__ import annotations

import collections
import contextlib
import io
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

import srq_nni  # noqa: F401 - BasicSR can be imported only after it
from srq_nni.cli.main import COMMANDS, main
from tests.cli.mutations import damaged, mutated, mutated_line
from tests.sr_data import REPOSITORY, evaluation_options, float_checkpoint, train_options, write_photo_folders

SECONDS = 60
QUANTIZED = REPOSITORY / "tests" / "data" / "checkpoint_v1.pth"


class Hang(BaseException):
    """A case took too long."""


@dataclass(frozen=True)
class Outcome:
    """How a case ended: ``accepted``, ``refused``, or what is wrong with it."""

    kind: str
    detail: str = ""
    argv: tuple[str, ...] = ()


class Fuzzer:
    """Cases over real option files, checkpoints and images in a folder of their own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        photos = write_photo_folders(folder / "photos")
        weights = float_checkpoint(folder / "float.pth")
        shutil.copy(QUANTIZED, folder / "quantized.pth")
        (folder / "broken.pth").write_bytes(QUANTIZED.read_bytes()[:3000])
        training = train_options(photos, weights)
        training["train"]["optim_q"] = {"lr": 0.01}
        ddtb = {"quantizer": "ddtb", "bits": {"weight": 2, "activation": 3}, "calibration_iters": 2, "static_iters": 1}
        entry = {"op_names": ["conv_first"], "quant_dtype": "int4", "target_names": ["weight", "_input_"]}
        files = {
            "pams": training,
            "ddtb": {**training, "quantization": ddtb},
            "list": {**training, "quantization": {"quantizer": "pams", "config_list": [entry]}},
            "alias": self._alias(training),
            "test": evaluation_options(photos, weights),
        }
        self.texts = {name: yaml.safe_dump(options, sort_keys=False) for name, options in files.items()}
        for path in sorted((REPOSITORY / "basicsr_configs").rglob("*EDSR_Mx2.yml")):
            self.texts[path.stem] = path.read_text()
        for name, text in self.texts.items():
            (folder / f"{name}.yml").write_text(text)
        self.lines = [
            *(f"{command} -opt {name}.yml" for name in ("pams", "ddtb", "alias") for command in ("train", "test")),
            "train -opt pams.yml --auto_resume --force_yml quantization:bits=2 train:total_iter=3",
            "test -opt test.yml --launcher none --force_yml name=x val:save_img=false",
            "export quantized.pth -o model.onnx --engine openvino",
            "export quantized.pth -o model.onnx --engine tensorrt",
            "schema -o schema.json",
            "report experiments/none -o page --images 2",
            *(f"{command} quantized.pth -o out" for command in COMMANDS),
            *(f"{command} -opt pams.yml" for command in COMMANDS),
            *(f"{command} broken.pth" for command in COMMANDS),
            *(f"{command} photos/HR -m missing.onnx -o out" for command in COMMANDS),
        ]

    @staticmethod
    def _alias(training: dict[str, Any]) -> dict[str, Any]:
        options = {key: value for key, value in training.items() if key != "quantization"}
        train = {key: value for key, value in training["train"].items() if key not in ("skt_opt", "optim_q")}
        network = {**training["network_g"], "type": "PAMS_EDSR", "bits": 4}
        return {**options, "model_type": "SRModel", "network_g": network, "train": train}

    def case(self, number: int) -> Outcome:
        """Run case ``number`` in an empty folder."""
        chance = random.Random(number)
        work = self.folder / "work"
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir()
        for file in self.folder.glob("*.*"):
            if file.is_file():
                (work / file.name).symlink_to(file)
        (work / "photos").symlink_to(self.folder / "photos")
        if chance.random() < 0.75:
            name = chance.choice([name for name in self.texts for _ in range(1 if "EDSR" in name else 4)])
            command = "test" if name.startswith("test") else "train"
            content = mutated(self.texts[name], chance).encode("utf-8", "replace")
            (work / "o.yml").write_bytes(damaged(content, chance))
            argv = [command, "-opt", "o.yml"]
        else:
            argv = mutated_line(chance.choice(self.lines).split(), chance)
        return self._run(argv, work)

    def _run(self, argv: list[str], work: Path) -> Outcome:
        before = {path: path.stat().st_mtime_ns for path in work.rglob("*")}
        out, err = io.StringIO(), io.StringIO()
        kind, detail = "accepted", ""
        with _in(work), _time_limit(), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                main(argv)
            except SystemExit as ended:
                if ended.code not in (0, None):
                    kind, detail = _judged(ended.code, err.getvalue())
            except Hang:
                kind, detail = "hang", f"over {SECONDS} s"
            except BaseException as error:
                kind, detail = "traceback", f"{type(error).__name__}: {error}"
        new = [path for path in work.rglob("*") if path not in before or path.stat().st_mtime_ns != before[path]]
        left = [path.name for path in new if path.name.endswith(".part")]
        if left:
            kind, detail = "temporary file", str(left)
        elif kind == "refused" and new:
            kind, detail = "written and refused", f"{[str(path.relative_to(work)) for path in new]}: {detail}"
        return Outcome(kind, detail, tuple(argv))


def _judged(status: object, text: str) -> tuple[str, str]:
    lines = [line for line in text.splitlines() if not line.startswith("srq: warning: ")]
    if status == 2 and len(lines) == 1 and lines[0].startswith("srq: error: "):
        return "refused", lines[0].removeprefix("srq: error: ")
    return "status or text", f"{status}: {text[-600:]}"


@contextlib.contextmanager
def _in(folder: Path) -> Iterator[None]:
    """Work in ``folder``; the pipelines, of which the checks before them are meant, only say that they were reached."""
    import basicsr.test
    import basicsr.train
    import basicsr.utils.options

    before, argv = Path.cwd(), sys.argv
    modules = (basicsr.train, basicsr.test, basicsr.utils.options)
    patched = [dict(vars(module)) for module in modules]
    basicsr.train.train_pipeline = basicsr.test.test_pipeline = lambda root: None
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)
        sys.argv = argv
        for module, names in zip(modules, patched, strict=True):
            vars(module).update(names)


@contextlib.contextmanager
def _time_limit() -> Iterator[None]:
    def stop(number: int, frame: Any) -> None:
        raise Hang

    previous = signal.signal(signal.SIGALRM, stop)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, previous)


def run(numbers: range, folder: Path, seconds: float = float("inf")) -> collections.Counter[str]:
    """Run cases until the time is up; print each that is wrong, and return how they ended."""
    fuzzer, counts, start = Fuzzer(folder), collections.Counter[str](), time.monotonic()
    for number in numbers:
        outcome = fuzzer.case(number)
        counts[outcome.kind] += 1
        if outcome.kind not in ("accepted", "refused"):
            sys.stdout.write(f"case {number}: {outcome.kind}: {list(outcome.argv)}: {outcome.detail}\n")
        if number % 500 == 499:
            sys.stdout.write(f"{number + 1} cases: {dict(counts)}\n")
        sys.stdout.flush()
        if time.monotonic() - start > seconds:
            break
    return counts


if __name__ == "__main__":
    first, last = ([0] * 2 + [int(number) for number in sys.argv[1:]])[-2:]
    with tempfile.TemporaryDirectory() as scratch:
        sys.stdout.write(f"{dict(run(range(first, last), Path(scratch)))}\n")
