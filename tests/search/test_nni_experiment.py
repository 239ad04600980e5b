"""NNI's experiments run to their end, with the manager on the loopback interface or not at all."""

from __future__ import annotations

import json
import os
import socket
import subprocess
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

import psutil
import pytest

from srq_nni.errors import OptionError
from srq_nni.search.measure import _key
from srq_nni.search.nni_experiment import (
    LOCAL,
    LOOPBACK,
    Service,
    _check_loopback,
    _on_loopback,
    listening_addresses,
    measure_with_nni,
    read_service,
    take_results,
)
from srq_nni.search.setup import Problem, problem_from
from tests.search.conftest import options_for
from tests.sr_data import NETWORK, REPOSITORY, float_checkpoint, write_yaml

SERVER = """
const net = require('net');
const server = net.createServer();
const done = () => { console.log(server.address().address); server.close(); };
"""


@pytest.mark.parametrize(
    "call",
    [
        "server.listen(0, done);",
        "server.listen(0, '0.0.0.0', done);",
        "server.listen({port: 0}, done);",
        "server.listen({port: 0, host: '::'}, done);",
        "server.listen('0', done);",
    ],
)
def test_every_port_of_node_is_on_loopback(call: str) -> None:
    """With the very Node.js that NNI brings, and only within the block."""
    node = files("nni_node") / "node"
    with _on_loopback(True):
        done = subprocess.run([str(node), "-e", SERVER + call], capture_output=True, text=True, timeout=120, check=True)
        assert str(LOOPBACK) in os.environ["NODE_OPTIONS"]
    assert done.stdout.strip() == "127.0.0.1"
    assert "NODE_OPTIONS" not in os.environ


def test_a_port_on_every_interface_is_noticed() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert listening_addresses(port) == {"127.0.0.1"}
        _check_loopback(port)
    with socket.create_server(("0.0.0.0", 0)) as server, pytest.raises(OptionError) as error:
        _check_loopback(server.getsockname()[1])
    assert str(error.value) == (
        "--nni: NNI's manager listens on 0.0.0.0 and not on the loopback interface only; it was stopped: leave --nni "
        "out, or give --nni-listen-anyway behind a firewall"
    )


def test_services(tmp_path: Path) -> None:
    assert read_service("local").is_local
    file = tmp_path / "s.yml"
    file.write_text("platform: remote\nmachineList: []\n")
    assert not read_service(str(file), listen_anyway=True).is_local
    with pytest.raises(OptionError, match="whose portal has no password"):
        read_service(str(file))


def test_results_of_other_options_or_images_are_left_out(problem: Problem) -> None:
    measurements = json.dumps({"a:weight=4": [[1.0], [2.0]]})
    assert take_results(problem, [{"fingerprint": "other", "default": 1.0, "measurements": measurements}]) == 0
    assert "a:weight=4" not in problem.measurer.results
    known = problem.measurer.fingerprint
    assert take_results(problem, [{"fingerprint": known, "default": 1.0, "measurements": measurements}]) == 1
    assert problem.measurer.results.pop("a:weight=4").noise == (1.0,)


LIGHT_TRIAL = """
import json, sys
import nni
unit = nni.get_next_parameter()["unit"]
spec = json.load(open("spec.json"))
measured = {key: [[1.0], [2.0]] for key in spec["keys"][unit]}
result = {"default": 1.0, "fingerprint": spec["fingerprint"], "measurements": json.dumps(measured)}
nni.report_final_result(result)
"""


@pytest.fixture
def small(crops: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[dict[str, Any], Path]]:
    """Options of a network of two units, and a folder for NNI, which is to keep nothing in the home of the user."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.chdir(tmp_path)
    options = options_for(crops) | {"network_g": NETWORK}
    options["path"] = {"pretrain_network_g": float_checkpoint(tmp_path / "float.pth")}
    yield options, tmp_path / "search"
    for child in psutil.Process().children(recursive=True):
        assert "nni_node" not in " ".join(child.cmdline()), "NNI's manager outlives the experiment"


@pytest.fixture
def ports(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Addresses on which the manager and what it started listen while the experiment runs."""
    from srq_nni.search import nni_experiment

    seen, follow = [], nni_experiment._follow

    def look_and_follow(experiment: Any, *args: Any) -> None:
        manager = psutil.Process(experiment._proc.pid)
        for process in (manager, *manager.children(recursive=True)):
            connections = process.net_connections(kind="inet")
            seen.extend(each.laddr.ip for each in connections if each.status == psutil.CONN_LISTEN)
        follow(experiment, *args)

    monkeypatch.setattr(nni_experiment, "_follow", look_and_follow)
    return seen


def test_an_experiment_runs_to_its_end_however_busy_the_machine_is(
    small: tuple[dict[str, Any], Path], ports: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a trial that imports NNI alone; NNI's own tuner has ten seconds to start, ours needs none of them."""
    options, folder = small
    problem = problem_from(options, widths=(8, 4), count=2, size=24, cache=folder / "measurements.json")
    units = [unit.name for unit in problem.units]
    keys = {unit: [_key(problem.only({unit: bits})) for bits in problem.widths] for unit in units}
    (folder / "nni").mkdir(parents=True)
    (folder / "nni" / "trial.py").write_text(LIGHT_TRIAL)
    monkeypatch.setattr("srq_nni.search.nni_experiment.TRIAL", "trial.py")
    spec = {"fingerprint": problem.measurer.fingerprint, "keys": keys}
    assert measure_with_nni(problem, spec, folder, Service({"platform": "local"})) == (2, 2)
    assert set(ports) and set(ports) <= set(LOCAL)
    assert all(problem.measurer.results[key].noise == (1.0,) for unit in units for key in keys[unit])
    assert (folder / "measurements.json").exists()
    assert measure_with_nni(problem, spec, folder, Service({"platform": "local"})) == (0, 0)  # nothing is left to do


@pytest.mark.slow
def test_trials_measure_what_the_search_measures(
    small: tuple[dict[str, Any], Path], ports: list[str], tmp_path: Path
) -> None:
    from srq_nni.cli.main import main

    options, _ = small
    file = write_yaml(tmp_path / "o.yml", options)
    arguments = ["search", "-opt", file, "--max-size", "0.02", "--count", "2", "--size", "24", "--bits", "8", "4"]
    main([*arguments, "-o", "here"])
    main([*arguments, "-o", "trials", "--nni", "local"])
    assert set(ports) and set(ports) <= set(LOCAL)
    assert len(list(tmp_path.glob("trials/nni/experiments/_latest/environments/local-env/trials/*"))) == 2
    here, trials = (json.loads((tmp_path / name / "measurements.json").read_text()) for name in ("here", "trials"))
    assert here == trials
