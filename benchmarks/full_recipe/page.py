"""docs/published.md: the published table beside what the same settings scored here."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from itertools import groupby
from pathlib import Path

from cells import PROTOCOL
from commands import REPOSITORY, WIRINGS, Run, arithmetic, iterations, runs
from published import COVERAGE, NETWORKS, SETS, Setting
from scores import Measured

from srq_nni.atomic import atomic_file
from srq_nni.errors import DataError

PAGE = REPOSITORY / "docs" / "published.md"
BEGIN, END = "<!-- written by benchmarks/full_recipe/recipe.py: begin -->", "<!-- end -->"
EXAMPLE, EXAMPLE_GPUS = "DDTB_EDSR_x4_2bit", 4
NOT_RUN = "not run"
HEADER = ("method", "bits", "set", "float, published", "published", *(f"`{recipe}`" for recipe in WIRINGS), "source")


def fill(page: Path, measured: Mapping[str, Measured]) -> None:
    """Write what the script knows between the marks of a page; the rest stays.

    Raises:
        DataError: if the page is missing or has no marks.
        WriteError: if the disk refuses it.
    """
    text = page.read_text(encoding="utf-8") if page.is_file() else ""
    head, begin, rest = text.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not begin or not end:
        raise DataError(f"'{page}' has no lines '{BEGIN}' and '{END}'; restore docs/published.md")
    with atomic_file(page) as file:
        file.write(f"{head}{BEGIN}\n\n{generated(measured)}\n{END}{tail}".encode())


def generated(measured: Mapping[str, Measured]) -> str:
    """Return the part of the page that the script writes."""
    return "\n".join([*_length(), *_commands(), *_tables(measured)])


def _length() -> Iterator[str]:
    share = iterations() / PROTOCOL.iterations
    yield "## Length\n"
    yield f"{arithmetic()}."
    yield (
        f"\n`recommended` was made on small EDSRs in {PROTOCOL.iterations:,} iterations ([accuracy.md](accuracy.md)); "
        f"here its warm-up and decay are {share:.0f} times as long, and its phases those of the papers. It has not run "
        "at this length. Its rates are those of 64 features, measured there at 8, 4 and 2 bits; 3 bits take that "
        "of 2.\n"
    )


def _commands() -> Iterator[str]:
    yield "## The commands of one row\n"
    for run in runs(EXAMPLE):
        yield f"{run.setting}, `{run.recipe}` ({run.settings.note}), {EXAMPLE_GPUS} GPUs:\n"
        yield "<!-- not run: takes days and several GPUs -->\n"
        commands = [_wrapped(run.training(EXAMPLE_GPUS)), _wrapped(run.testing())]
        yield "\n".join(["```bash", *commands, "```\n"])


def _wrapped(words: list[str]) -> str:
    """Return a command with each override on a line of its own."""
    first = words.index("--force_yml") + 1
    return " \\\n    ".join([shlex.join(words[:first]), *(shlex.quote(word) for word in words[first:])])


def _tables(measured: Mapping[str, Measured]) -> Iterator[str]:
    every = runs()
    finished = sum(run.name in measured for run in every)
    yield "## Published and own scores\n"
    yield (
        f"Y-PSNR in dB / SSIM, the published ones as printed. {finished} of {len(every)} runs are finished; "
        f'"{NOT_RUN}" means: not run, needs GPUs. In brackets: difference of PSNR to the published one. "–": not at '
        "hand.\n"
    )
    for (network, scale), group in groupby(every, key=lambda run: (run.setting.network, run.setting.scale)):
        yield f"### {NETWORKS[network]} x{scale}\n"
        shares = [
            f"`{recipe}` {COVERAGE[network, scale][wiring]:.1%} (wiring `{wiring}`)"
            for recipe, wiring in WIRINGS.items()
        ]
        yield f"Multiply-accumulates with two quantized operands: {', '.join(shares)}.\n"
        yield "| " + " | ".join(HEADER) + " |"
        yield "|---" * len(HEADER) + "|"
        for setting, own in groupby(group, key=lambda run: run.setting):
            yield from _rows(setting, list(own), measured)
        yield ""


def _rows(setting: Setting, own: list[Run], measured: Mapping[str, Measured]) -> Iterator[str]:
    for name in SETS:
        score, teacher = setting.scores[name], setting.floats[name]
        columns = [setting.method, str(setting.bits), name, str(teacher), str(score)]
        columns += [_own(measured.get(run.name), name, score.psnr) for run in own]
        sources = [score.source] if score.psnr else []
        sources += [f"float: {teacher.source}"] if teacher.psnr and teacher.source not in sources else []
        yield "| " + " | ".join([*columns, "; ".join(sources) or "–"]) + " |"


def _own(measured: Measured | None, name: str, published: str) -> str:
    if measured is None:
        return NOT_RUN
    psnr, ssim = measured.scores[name]
    difference = f" ({psnr - float(published):+.2f})" if published else ""
    return f"{psnr:.3f} / {ssim:.4f}{difference}"
