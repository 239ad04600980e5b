"""NNI's manager: on the loopback interface or not at all; and results of trials that belong to another search."""

from __future__ import annotations

import json
import os
import socket
import subprocess
from importlib.resources import files
from pathlib import Path

import pytest

from srq_nni.errors import OptionError
from srq_nni.search.nni_experiment import (
    LOOPBACK,
    _check_loopback,
    _on_loopback,
    listening_addresses,
    read_service,
    take_results,
)
from srq_nni.search.setup import Problem

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
