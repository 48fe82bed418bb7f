"""The same study on a Ray cluster of two nodes: the same runs; an item that dies or hangs there affects no other."""

import json
import os
import socket
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import test_kill
import test_workers

import normkit
from normkit.errors import StateError
from normkit.study.execution.workers import Failure, make_executor

# In a separate process, because Ray changes the environment and gives deprecation warnings.
SCRIPT = """
import json
import sys
from pathlib import Path

import ray
from ray.cluster_utils import Cluster

import test_cluster

if __name__ == "__main__":
    nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    nodes.add_node(num_cpus=1)
    print(json.dumps(test_cluster.on_cluster(nodes.address, Path(sys.argv[1]))))
    nodes.shutdown()
"""


def whereabouts(payload: int, item: int) -> str:
    import time

    import ray

    time.sleep(1.0)
    return str(ray.get_runtime_context().get_node_id())


def on_cluster(address: str, folder: Path) -> dict[str, Any]:
    """What the tests look at."""
    with make_executor(40, None, executor="ray", address=address) as pool:
        items = ["1", "raise", "kill", "2", "hang", "leave", "3", "lambda", "memory", "4"]
        odd = {
            item: result.reason if isinstance(result, Failure) else result
            for item, result in pool.work(test_workers.odd, items, 5.0)
        }
        nodes = {node for _, node in pool.work(whereabouts, range(4))}
    test_kill.study(folder, 2, workers=2, executor="ray", address=address)
    return {"odd": odd, "nodes": len(nodes)}


@pytest.mark.slow
@pytest.mark.skipif(find_spec("ray") is None, reason="ray is not installed")
def test_two_nodes_give_what_this_process_gives(tmp_path: Path) -> None:
    ray, alone = tmp_path / "ray", tmp_path / "alone"
    script = tmp_path / "script.py"
    script.write_text(SCRIPT, encoding="utf-8")
    paths = os.pathsep.join([str(Path(__file__).parent), str(Path(__file__).parents[1]), *sys.path])
    done = subprocess.run(
        [sys.executable, str(script), str(ray)],
        env=os.environ | {"PYTHONPATH": paths},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["nodes"] == 2
    odd = found["odd"]
    assert {item: odd[item] for item in "1234"} == {item: [40 + int(item), 1] for item in "1234"}
    assert odd["raise"] == "TwoPartsError: no room"
    assert odd["memory"] == "MemoryError: 4 GiB"
    assert odd["hang"] == "it ran past its time limit of 5 s and was stopped"
    for item in ("kill", "leave"):
        assert odd[item].startswith("its process died: ")
    test_kill.study(alone, 2)
    test_kill.assert_same(test_kill.stored(ray), test_kill.stored(alone))


def test_a_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.delitem(sys.modules, "normkit.study.execution.workers.cluster", raising=False)
    with pytest.raises(StateError, match=r'executor="ray" needs a package .*\(ray\): pip install "normkit\[ray\]"'):
        normkit.compare(methods=["BN"], batch_sizes=[4], seeds=2, trials=3, steps=40, out=tmp_path, executor="ray")


@pytest.mark.skipif(find_spec("ray") is None, reason="ray is not installed")
def test_an_address_where_nothing_listens_is_refused_at_once() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    # In a separate process, as above.
    code = (
        "from normkit.study.execution.workers import make_executor as make; "
        f"make(1, 2, executor='ray', address='127.0.0.1:{port}').__enter__()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    last_line = done.stderr.splitlines()[-1]
    assert last_line.startswith(
        f"normkit.errors.StateError: a Ray cluster must answer at the address, got '127.0.0.1:{port}'"
    )
    assert last_line.endswith("ray start --head, or leave the address out to make one on this machine")
