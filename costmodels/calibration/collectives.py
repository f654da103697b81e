"""Collectives between the ranks `torchrun` started: seconds by kind and size, from Python and inside a CUDA graph.

`bytes` is nccl-tests' size: the full tensor for all-reduce, the gathered output for all-gather, the full input for
reduce-scatter, the per-rank buffer for all-to-all and send-recv. `link_bytes` is what each rank must send.
`send_recv` sends to the next rank and receives from the last at once; `send_recv_one_way` only moves from rank 0 to 1.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from typing import Any

from costmodels.calibration.suite import READINGS, Cell, Row, Suite, Task, interleave

KINDS = ("all_reduce", "all_gather", "reduce_scatter", "all_to_all", "send_recv", "send_recv_one_way", "broadcast")


def join(bench: Any) -> None:
    """Join the process group that `torchrun` describes."""
    distributed = bench.torch.distributed
    backend = "nccl" if bench.cuda else "gloo"
    device = {"device_id": bench.device} if bench.cuda else {}
    distributed.init_process_group(backend, timeout=timedelta(seconds=90), **device)


def leave(bench: Any) -> None:
    """Leave it."""
    bench.wait()
    bench.torch.distributed.barrier()
    bench.torch.distributed.destroy_process_group()


def tasks(small: bool) -> list[Task]:
    """Sizes from 1 KiB to 1 GiB, all powers of two for the common kinds and every second for the others."""
    groups = []
    for op in KINDS:
        for launch in ("graph", "eager", "single"):
            powers = range(10, 31) if op in ("all_reduce", "all_gather", "reduce_scatter") else range(10, 31, 2)
            powers = range(10, 31, 4) if op == "broadcast" or launch == "single" else powers
            powers = range(10, 15, 4) if small else powers
            groups.append([_task(op, 2**p, launch) for p in powers])
            if op in ("all_reduce", "all_gather") and not small and launch == "graph":
                groups.append([_task(op, 3 * 2**p, launch) for p in range(16, 29, 3)])
    if not small:  # sizes between powers of two, and the odd powers of the kinds that had every second
        for op in KINDS[2:5]:
            groups.append([_task(op, 3 * 2**p, launch) for launch in ("graph", "eager") for p in range(15, 29)])
        for op in KINDS[3:5]:
            groups.append([_task(op, 2**p, launch) for launch in ("graph", "eager") for p in range(13, 30, 2)])
    return interleave(groups)


def _task(op: str, size: int, launch: str) -> Task:
    key: dict[str, Cell] = {"op": op, "dtype": "bf16", "bytes": size, "launch": launch}
    return Task(key=key, seconds=0.08 + 60 * size / 1.5e11)


def measure(bench: Any, key: Mapping[str, Cell]) -> Row:
    """Time one collective; every rank must call this with the same key."""
    torch, world, rank = bench.torch, bench.world, bench.rank
    distributed = torch.distributed
    op, count = str(key["op"]), int(key["bytes"]) // 2
    part = count // world
    x = torch.randn(count, device=bench.device).to(torch.bfloat16)
    y = torch.empty_like(x)
    after, before = (rank + 1) % world, (rank - 1) % world

    def exchange() -> None:
        requests = [distributed.P2POp(distributed.isend, x, after), distributed.P2POp(distributed.irecv, y, before)]
        for work in distributed.batch_isend_irecv(requests):
            work.wait()

    def one_way() -> None:
        if rank == 0:
            distributed.send(x, 1)
        elif rank == 1:
            distributed.recv(y, 0)

    calls = {
        "all_reduce": lambda: distributed.all_reduce(x),
        "all_gather": lambda: distributed.all_gather_into_tensor(y, x[:part]),
        "reduce_scatter": lambda: distributed.reduce_scatter_tensor(y[:part], x),
        "all_to_all": lambda: distributed.all_to_all_single(y, x),
        "send_recv": exchange,
        "send_recv_one_way": one_way,
        "broadcast": lambda: distributed.broadcast(x, 0),
    }
    sent = {"all_reduce": 2 * (world - 1) / world, "send_recv": 1, "send_recv_one_way": 1, "broadcast": 1}
    distributed.barrier()
    timing = bench.time_together(calls[op], str(key["launch"]), int(key["bytes"]))
    bench.tidy(above=16e9)
    return dict(
        timing.row() | {"ranks": world, "ranks_per_node": world, "link_bytes": 2.0 * count * sent.get(op, (world - 1) / world)}
    )


SUITE = Suite(
    name="collectives",
    key=("op", "dtype", "bytes", "launch"),
    measured=(*READINGS, "ranks", "ranks_per_node", "link_bytes"),
    share=0.35,
    tasks=tasks,
    measure=measure,
    needs_ranks=2,
)
