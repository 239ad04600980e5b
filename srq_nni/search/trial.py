"""One trial of a search that NNI spreads: one unit alone, at every width."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import nni

import srq_nni  # noqa: F401 - BasicSR can be imported only after it
from srq_nni.models.options import read_options
from srq_nni.search.setup import problem_from


def main(spec_path: str) -> None:
    """Measure the unit that NNI names and report every measurement."""
    spec = json.loads(Path(spec_path).read_text())
    unit = nni.get_next_parameter()["unit"]
    opt = read_options(spec["opt"], spec["overrides"])
    os.chdir(spec["folder"])  # paths of the option file are relative to it
    settings = {key: spec[key] for key in ("widths", "phase", "count", "size")}
    problem = problem_from(opt, **settings)
    problem.measurer.prepare()
    for bits in problem.widths:
        problem.measurer.measure(problem.only({unit: bits}))
    results = {key: [result.noise, result.error] for key, result in problem.measurer.results.items()}
    least = min(sum(noise) for noise, _ in results.values())
    nni.report_final_result(
        {"default": least, "fingerprint": problem.measurer.fingerprint, "measurements": json.dumps(results)}
    )


if __name__ == "__main__":
    main(sys.argv[1])
