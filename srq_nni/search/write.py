"""What a search leaves: a config_list to edit, an option file that trains with it, a table and a plot."""

from __future__ import annotations

import json
import re
from hashlib import sha256
from pathlib import Path
from typing import Any

import yaml

from srq_nni.archs.aliases_arch import is_alias
from srq_nni.atomic import atomic_file
from srq_nni.errors import WriteError
from srq_nni.models.base import DEFAULT_BASE
from srq_nni.search.block import quantization_block
from srq_nni.search.run import Point, SearchResult
from srq_nni.speedup.table import text_table

EDITED = ("quantization.yml", "train.yml")  # what people edit
SEAL = b"# as srq search wrote it: "  # before the digest of what stands above
FILES = (*EDITED, "bits.json", "pareto.png")
QUANTIZED = "QuantSRModel"  # the model that trains a quantization block
_BLOCK = re.compile(r"^quantization:.*?(?=^[^\s#]|\Z)", re.MULTILINE | re.DOTALL)


def write_result(
    result: SearchResult, folder: Path, option_text: str, options: dict[str, Any], command: str
) -> list[Path]:
    """Write ``quantization.yml``, ``train.yml``, ``bits.json`` and ``pareto.png`` into ``folder``; return the paths.

    Args:
        result: of the search.
        folder: which exists.
        option_text: of the option file; its comments stay where only the block is replaced.
        options: that file and its overrides, read.
        command: for the comment at the top.

    Raises:
        WriteError: if the disk refuses a file.
    """
    from srq_nni.search.plot import pareto_plot

    block = quantization_block(result.problem, result.best.assignment, result.gates)
    text = _block_text(block, result, command)
    contents = (
        _sealed(text),
        _sealed(_option_file(option_text, text, _training_options(options, result.problem.network_block, block))),
        (json.dumps(as_data(result), indent=1) + "\n").encode(),
        pareto_plot(result),
    )
    paths = []
    for name, content in zip(FILES, contents, strict=True):
        with atomic_file(folder / name) as file:
            file.write(content)
        paths.append(folder / name)
    return paths


def refuse_edited(folder: Path) -> None:
    """Check that a search may write its files into ``folder``.

    Raises:
        WriteError: if a file of an earlier search was edited since, or is none of a search.
    """
    for path in (folder / name for name in EDITED):
        if path.exists() and not _is_sealed(path.read_bytes()):
            raise WriteError(
                f"'{path}' is not as a search wrote it and would be lost; move it away, or give another folder with -o"
            )


def _sealed(text: str) -> bytes:
    """Return ``text`` with a last line by which another search tells whether it was edited."""
    content = text.rstrip("\n").encode() + b"\n"
    return content + SEAL + sha256(content).hexdigest().encode() + b"\n"


def _is_sealed(content: bytes) -> bool:
    above, seal, digest = content.rpartition(SEAL)
    return bool(seal) and digest.strip() == sha256(above).hexdigest().encode()


def table(result: SearchResult) -> str:
    """Return the losses of each unit alone and its bits, the assignment beside equal bits, and what was measured on."""
    widths = result.problem.widths
    head = ("convolution", *(f"{bits} bits" for bits in widths), "chosen")
    rows = [
        (unit.name, *(f"{loss:.4f}" for loss in losses), str(result.best.assignment[unit.name]))
        for unit, losses in zip(result.problem.units, result.alone, strict=True)
    ]
    points = [(f"{bits} bits everywhere", point) for bits, point in result.uniform.items()]
    lines = [_point_row(name, point) for name, point in [*points, (f"chosen, {result.budget}", result.best)]]
    parts = [
        f"measured on {result.problem.images.describe()}",
        f"float network: {result.float_psnr:.3f} dB on Y",
        "",
        "loss in dB of each convolution quantized alone",
        text_table(head, rows),
        "",
        text_table(("", "loss dB", "file MB", "published M", "BOPs T", "coverage"), lines),
    ]
    if result.gates:
        parts.append(f"gates on {', '.join(f'{module} {target}' for module, target in result.gates)}")
    return "\n".join(parts)


def as_data(result: SearchResult) -> dict[str, Any]:
    """Return the result as dicts, lists and numbers."""
    return {
        "format": 1,
        "budget": {"kind": result.budget.kind, "limit": result.budget.limit},
        "images": [pair.path for pair in result.problem.images.pairs],
        "float_psnr": result.float_psnr,
        "widths": list(result.problem.widths),
        "loss_alone": {
            unit.name: [float(loss) for loss in losses]
            for unit, losses in zip(result.problem.units, result.alone, strict=True)
        },
        "best": _point_data(result.best),
        "uniform": {str(bits): _point_data(point) for bits, point in result.uniform.items()},
        "tried": [_point_data(point) for point in result.tried],
        "gates": [list(key) for key in result.gates],
    }


def _point_row(name: str, point: Point) -> tuple[str, ...]:
    summary = point.summary
    numbers = (f"{point.loss:.3f}", f"{summary.file_bytes / 1e6:.3f}", f"{summary.size / 1e6:.3f}")
    return (name, *numbers, f"{summary.bops / 1e12:.2f}", f"{summary.coverage:.1%}")


def _point_data(point: Point) -> dict[str, Any]:
    totals = {"file_bytes": point.summary.file_bytes, "size": point.summary.size, "bops": point.summary.bops}
    return {"bits": point.assignment, "psnr": point.psnr, "loss": point.loss, **totals}


def _block_text(block: dict[str, Any], result: SearchResult, command: str) -> str:
    """Return the block as YAML with a comment on each entry."""
    best = result.best
    lines = [
        f"# {command}",
        f"# {result.budget}: {best.loss:.3f} dB below the float network before training, measured on",
        f"# {result.problem.images.describe()}",
        f"# {best.summary.file_bytes / 1e6:.3f} MB, {best.summary.bops / 1e12:.2f} T BOPs at 1280x720; edit at will",
        "quantization:",
    ]
    lines += [f"  {key}: {_flow(value)}" for key, value in block.items() if key != "config_list"]
    lines.append("  config_list:")
    losses = {unit.name: row for unit, row in zip(result.problem.units, result.alone, strict=True)}
    for entry in block["config_list"]:
        name = entry["op_names"][0]
        if name in losses:
            width = result.problem.widths.index(best.assignment[name])
            lines.append(f"    # alone it loses {losses[name][width]:.4f} dB at {best.assignment[name]} bits")
        lines.append(f"    - {_flow(entry)}")
    return "\n".join(lines) + "\n"


def _flow(value: Any) -> str:
    text = yaml.safe_dump(value, default_flow_style=True, width=10**6, sort_keys=False)
    return text.removesuffix("\n").removesuffix("\n...")


def _training_options(opt: dict[str, Any], network: dict[str, Any], block: dict[str, Any]) -> dict[str, Any]:
    """Return the options with the block and a model that trains it, which a stock model of BasicSR does not."""
    name = opt.get("model_type")
    if name != DEFAULT_BASE and not is_alias(opt["network_g"]):
        return {**opt, "quantization": block}
    extended = {} if name in (None, DEFAULT_BASE, QUANTIZED) else {"base_model": name}
    return {**opt, "model_type": QUANTIZED, **extended, "network_g": network, "quantization": block}


def _option_file(text: str, block: str, wanted: dict[str, Any]) -> str:
    """Return the option file with its block replaced; one that cannot be replaced in place is written anew."""
    from srq_nni.models.options import OptionLoader

    replaced, count = _BLOCK.subn(lambda _: block + "\n", text)
    if count == 1:
        try:
            if yaml.load(replaced, Loader=OptionLoader) == wanted:
                return replaced
        except yaml.YAMLError:
            pass
    others = {key: value for key, value in wanted.items() if key != "quantization"}
    return f"{block}\n{yaml.safe_dump(others, sort_keys=False)}"
