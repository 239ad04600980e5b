"""The measurements of a search as an NNI experiment, whose training services run them on other machines.

NNI's manager opens a web portal without a password on every interface: whoever reaches the port can start any command
as the user. A script that Node.js loads first (``loopback.js``) keeps it on the loopback interface, which is checked
before the first trial starts. Services on other machines have to reach the manager, so they are refused unless the user
says that the portal may listen.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import yaml

from srq_nni.atomic import atomic_file
from srq_nni.errors import OptionError
from srq_nni.progress import bar
from srq_nni.search.measure import Measurement
from srq_nni.search.setup import Problem

if TYPE_CHECKING:
    from srq_nni.search.nni_tuner import TunedHere

LOOPBACK = Path(__file__).with_name("loopback.js")
LOCAL = ("127.0.0.1", "::1", "::ffff:127.0.0.1")
POLL = 2.0  # seconds
TRIAL = "-m srq_nni.search.trial spec.json"
ENDED = ("DONE", "ERROR", "STOPPED")


@dataclass(frozen=True)
class Service:
    """Where trials run: NNI's ``trainingService`` block, and whether its manager may listen on every interface."""

    block: Mapping[str, Any]
    listen_anyway: bool = False

    @property
    def is_local(self) -> bool:
        """Whether trials run on this machine."""
        return self.block.get("platform") == "local"


def read_service(given: str, *, listen_anyway: bool = False) -> Service:
    """Return the service that ``--nni`` names.

    Args:
        given: ``local``, or a YAML file with NNI's ``trainingService`` block (``platform: remote`` and so on).
        listen_anyway: the user allows the portal on every interface.

    Raises:
        OptionError: if the file is no such block, or the service needs what is not allowed.
    """
    block: Any = {"platform": "local"}
    if given != "local":
        try:
            block = yaml.safe_load(Path(given).read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, yaml.YAMLError):
            raise OptionError(
                f"--nni {given}: it is no YAML file; give local, or a file with a trainingService"
            ) from None
        block = block.get("trainingService", block) if isinstance(block, dict) else block
    if not isinstance(block, dict) or not isinstance(block.get("platform"), str):
        raise OptionError(
            f"--nni {given}: it names no platform; give NNI's trainingService block, with platform: remote"
        )
    service = Service(block, listen_anyway)
    if not service.is_local and not listen_anyway:
        raise OptionError(
            f"--nni {given}: trials on '{block['platform']}' have to reach NNI's manager, whose portal has no password "
            "and would listen on every interface; give --nni-listen-anyway behind a firewall, or --nni local"
        )
    return service


def measure_with_nni(problem: Problem, spec: Mapping[str, Any], folder: Path, service: Service) -> tuple[int, int]:
    """Let an NNI experiment measure every unit alone, and take its results into ``problem.measurer.results``.

    What a trial did not deliver is measured by the search itself, and so is everything after an interruption.

    Args:
        problem: its measurements are kept in its cache.
        spec: what a trial needs to build the same problem (see ``trial``).
        folder: of NNI's files.
        service: where trials run.

    Returns:
        How many units the trials measured, and how many they should have.

    Raises:
        OptionError: if the manager cannot be started, or cannot be kept on the loopback interface.
    """
    from nni.experiment import ExperimentConfig

    from srq_nni.search.nni_tuner import TunedHere

    units = [unit.name for unit in problem.units if not _is_known(problem, unit.name)]
    if not units:
        return 0, 0
    code = folder / "nni"
    code.mkdir(parents=True, exist_ok=True)
    with atomic_file(code / "spec.json") as file:
        file.write(json.dumps(spec).encode())
    interpreter = sys.executable if service.is_local else "python3"
    config = ExperimentConfig(
        experiment_name="srq search",
        trial_command=f"{interpreter} {TRIAL}",
        trial_code_directory=str(code.resolve()),
        search_space={"unit": {"_type": "choice", "_value": units}},
        trial_concurrency=max((os.cpu_count() or 2) // 2, 1),
        trial_gpu_number=0,
        max_trial_number=len(units),
        tuner={"name": "GridSearch"},  # which runs in this process
        training_service=dict(service.block),
        experiment_working_directory=str((folder / "nni" / "experiments").resolve()),
    )
    experiment = TunedHere(config)
    port = _free_port()
    try:
        try:
            with _on_loopback(not service.listen_anyway):
                experiment.start(port)
        except (OSError, RuntimeError) as error:
            raise OptionError(
                f"--nni: the manager of NNI did not start ({error}); leave --nni out to measure here"
            ) from error
        if not service.listen_anyway:
            _check_loopback(port)
        _follow(experiment, problem, len(units))
    finally:
        experiment.stop()
    return sum(_is_known(problem, name) for name in units), len(units)


def take_results(problem: Problem, delivered: list[Mapping[str, Any]]) -> int:
    """Put the results of trials into the problem; those of other options, weights or images are left out.

    Args:
        problem: the search.
        delivered: what the trials reported.

    Returns:
        How many measurements were new.
    """
    known = len(problem.measurer.results)
    for result in delivered:
        if result.get("fingerprint") != problem.measurer.fingerprint:
            continue
        for key, (noise, error) in json.loads(result["measurements"]).items():
            problem.measurer.results.setdefault(key, Measurement(tuple(noise), tuple(error)))
    if len(problem.measurer.results) > known:
        problem.measurer.write()
    return len(problem.measurer.results) - known


def _follow(experiment: TunedHere, problem: Problem, trials: int) -> None:
    """Wait for the trials, taking each result as it comes, until they have ended or the manager has."""
    with bar("Trials of NNI", trials, "trial") as progress:
        while True:
            try:
                status = experiment.get_status()
                done = [trial.value for trial in experiment.export_data()]
            except (OSError, RuntimeError):  # a busy manager answers late
                if not experiment.is_alive:
                    return
            else:
                take_results(problem, [value for value in done if isinstance(value, dict)])
                progress.update(len(done) - progress.n)
                if status in ENDED:
                    return
            time.sleep(POLL)


def _is_known(problem: Problem, unit: str) -> bool:
    return all(problem.measurer.knows(problem.only({unit: bits})) for bits in problem.widths)


@contextmanager
def _on_loopback(wanted: bool) -> Iterator[None]:
    """Let Node.js processes that start meanwhile bind their ports to 127.0.0.1."""
    before = os.environ.get("NODE_OPTIONS")
    if wanted:
        os.environ["NODE_OPTIONS"] = f'{before or ""} --require "{LOOPBACK}"'.strip()
    try:
        yield
    finally:
        if before is None:
            os.environ.pop("NODE_OPTIONS", None)
        else:
            os.environ["NODE_OPTIONS"] = before


def listening_addresses(port: int) -> set[str]:
    """Return the local addresses on which this machine accepts connections to a port."""
    return {
        connection.laddr.ip
        for connection in psutil.net_connections(kind="tcp")
        if connection.status == psutil.CONN_LISTEN and connection.laddr.port == port
    }


def _check_loopback(port: int) -> None:
    addresses = listening_addresses(port)
    if not addresses or not addresses <= set(LOCAL):
        raise OptionError(
            f"--nni: NNI's manager listens on {', '.join(sorted(addresses)) or 'an unknown address'} and not on the "
            "loopback interface only; it was stopped: leave --nni out, or give --nni-listen-anyway behind a firewall"
        )


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
