"""Processes that work together, for tests: gloo, on this machine's CPU."""

import multiprocessing
import os
import pickle
import socket
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

import torch

from holdfast.processes import Processes


def together(function: Callable[..., Any], *arguments: Any, count: int = 2) -> list[Any]:
    """What ``function(processes, *arguments)`` returns in each of some processes, or the exception it ends with.

    None stands for a process that was killed.
    """
    # A server with everything imported, so that a process more costs next to nothing.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["accelerate", "holdfast.train", "torch._dynamo"])
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    ends = [context.Pipe(duplex=False) for _ in range(count)]
    team = [
        context.Process(target=_work, args=(rank, count, port, end, function, arguments))
        for rank, (_, end) in enumerate(ends)
    ]
    for process, (_, end) in zip(team, ends, strict=True):
        process.start()
        end.close()
    results = [_received(end) for end, _ in ends]
    for process in team:
        process.join(60)
        assert not process.is_alive()
    return results


def _received(end: Connection) -> Any:
    try:
        return pickle.loads(end.recv_bytes())
    except EOFError:
        return None


def _work(
    rank: int, count: int, port: int, end: Connection, function: Callable[..., Any], arguments: tuple[Any, ...]
) -> None:
    torch.set_num_threads(1)
    names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count, "MASTER_PORT": port}
    os.environ |= {"MASTER_ADDR": "localhost", "OMP_NUM_THREADS": "1"} | {k: str(v) for k, v in names.items()}
    try:
        with Processes.launched() as processes:
            result = function(processes, *arguments)
    except Exception as error:
        result = error
    end.send_bytes(pickle.dumps(result))
