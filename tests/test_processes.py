"""Processes that work together: two of them on this machine, over gloo."""

import os
import signal
import socket
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from helpers.processes import together
from holdfast import DataError, HoldfastError, Processes, RunError
from holdfast.processes import ALONE

COUNT = 3


def exercise(processes: Processes) -> dict[str, object]:
    """Every exchange once, from values that tell the processes apart."""
    rank = processes.rank
    mine = [torch.full((2, 3), rank + 1.0), torch.arange(4) * (rank + 1), torch.tensor(0.1, dtype=torch.float64)]
    summed, averaged = [tensor.clone() for tensor in mine], [mine[0].t().clone(), mine[2].clone()]
    processes.add(summed)
    processes.average(averaged)
    aligned = [torch.tensor([rank, 7]), mine[0].t().clone()]
    processes.align(aligned)
    return {
        "sum": summed,
        "mean": averaged,
        "aligned": aligned,
        "told": processes.tell({"from": rank}),
        "gathered": processes.gather("abc"[rank]),
        "collected": processes.collect([10 * item for item in processes.deal(range(8))]),
        "few": processes.collect([10 * item for item in processes.deal(range(2))]),
        "device": str(processes.device),
    }


def test_what_is_exchanged_is_the_same_everywhere():
    results = together(exercise, count=COUNT)
    for found in results:
        torch.testing.assert_close(found["sum"][0], torch.full((2, 3), 6.0))
        assert found["sum"][1].tolist() == [0, 6, 12, 18]
        torch.testing.assert_close(found["mean"][0], torch.full((3, 2), 2.0))
        torch.testing.assert_close(found["aligned"], [torch.tensor([0, 7]), torch.ones(3, 2)])
        assert found["told"] == {"from": 0}
        assert found["gathered"] == ["a", "b", "c"]
        assert found["collected"] == [10 * item for item in range(8)]
        assert found["few"] == [0, 10]
        assert found["device"] == "cpu"
        # The same bits, not only the same value.
        for name in ("sum", "mean"):
            assert all(map(torch.equal, found[name], results[0][name]))


def test_one_process_is_given_back_what_it_has():
    tensors = [torch.tensor([1.0, 2.0])]
    ALONE.add(tensors)
    ALONE.average(tensors)
    ALONE.align(tensors)
    ALONE.wait()
    assert tensors[0].tolist() == [1.0, 2.0]
    assert ALONE.tell(5) == 5
    assert ALONE.gather(5) == [5]
    assert ALONE.collect(ALONE.deal([1, 2, 3])) == [1, 2, 3]
    with pytest.raises(DataError), ALONE:
        raise DataError("as it is")


def fail(kind: type[Exception], processes: Processes) -> None:
    for step in range(3):
        if processes.rank == 1 and step == 2:
            raise kind("label 12 is outside")
        processes.add([torch.ones(5)])
    processes.wait()


@pytest.mark.parametrize(
    ("kind", "raised", "message"),
    [
        (DataError, DataError, "label 12 is outside"),
        (KeyError, RunError, "process 1 of 2 failed: KeyError: .*label 12"),
    ],
)
def test_an_error_in_one_process_is_an_error_in_all(kind, raised, message):
    first, second = together(partial(fail, kind))
    assert type(first) is raised
    assert type(second) is kind  # with its own traceback where it is a fault
    with pytest.raises(raised, match=message):
        raise first


def vanish(processes: Processes) -> None:
    for step in range(3):
        if processes.rank == 1 and step == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        processes.add([torch.ones(5)])


def test_a_process_that_is_killed_leaves_nobody_waiting():
    first, second = together(vanish)
    assert second is None
    assert isinstance(first, HoldfastError)
    assert "process 0 of 2 lost the others" in str(first)
    assert "\n" not in str(first)


def test_accelerate_is_imported_only_where_processes_were_launched():
    code = "import sys, holdfast; holdfast.Processes.launched(); assert 'accelerate' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="threads are counted in /proc")
def test_no_thread_outlives_the_group():
    code = """
import os, torch, holdfast
holdfast.Processes.launched()
torch.optim.SGD([torch.ones(1, requires_grad=True)], 0.1)  # imports much of torch
torch.distributed.destroy_process_group()
names = {open(f"/proc/self/task/{task}/comm").read() for task in os.listdir("/proc/self/task")}
assert not [name for name in names if "gloo" in name], names
os._exit(0)
"""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        place = {"MASTER_ADDR": "localhost", "MASTER_PORT": str(free.getsockname()[1]), "WORLD_SIZE": "2"}
    team = [
        subprocess.Popen([sys.executable, "-c", code], env=os.environ | place | {"RANK": rank, "LOCAL_RANK": rank})
        for rank in "01"
    ]
    assert [process.wait(60) for process in team] == [0, 0]


@pytest.mark.slow
def test_the_command_line_under_a_launcher(tmp_path):
    command = (
        "train --arch mlp --data digits --threat linf:0.05 --epochs 1 --audit quick --audit-examples :40 --run run"
    )
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*torchrun, "-m", "--", "holdfast", *command.split()],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("holdfast audit ─") == 1  # the main one alone speaks
    assert not list((tmp_path / "run" / "audit").glob("run.*.sqlite"))
    with safe_open(tmp_path / "run" / "checkpoint.safetensors", "pt") as checkpoint:
        assert '"processes": "2"' in checkpoint.metadata()["notes"]
    # Another audit: one line, though both refuse.
    command = command.replace("quick", "fast")
    done = subprocess.run(
        [*torchrun, "-m", "--", "holdfast", *command.split()],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode != 0
    assert (done.stdout + done.stderr).count("holds another audit") == 1


WHOLE = {"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"}


@pytest.mark.parametrize(
    ("name", "word"),
    [
        ("WORLD_SIZE", ""), ("WORLD_SIZE", "0"), ("WORLD_SIZE", "-2"), ("WORLD_SIZE", "two"), ("WORLD_SIZE", "9" * 30),
        ("RANK", "2"), ("RANK", "x\x1b[31m"), ("RANK", None), ("LOCAL_RANK", "1.5"), ("MASTER_PORT", "65536"),
    ],
)  # fmt: skip
def test_an_environment_that_makes_no_sense_is_refused(monkeypatch, name, word):
    for key, value in (WHOLE | {name: word}).items():
        if value is None:
            monkeypatch.delenv(key, raising=False)
        else:
            monkeypatch.setenv(key, value)
    with pytest.raises(RunError, match=f"{name} in the environment is ") as error:
        Processes.launched()
    assert str(error.value).isprintable()
