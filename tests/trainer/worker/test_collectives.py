"""Exchanges between ranks: a late rank is waited for, one that is gone is named, rows come to the first in rounds."""

from __future__ import annotations

import logging
import os
import signal
import time
from typing import Any

import pytest
import torch
import torch.distributed as dist

from tests.ranks import run_ranks
from tests.trainer.tiny import config, packed
from trainer.config.run_config import RunConfig
from trainer.jobs.job import run
from trainer.worker import collectives
from trainer.worker.collectives import PeerError, named_failures, rows_everywhere, rows_to_first
from trainer.worker.context import SingleContext
from trainer.worker.heartbeat import beating, doing

TIMEOUT_S, STEP = 4.0, 3


class Victim(SingleContext):
    """A rank to which something happens in step STEP, before it joins the exchange of that step."""

    def __init__(self, rank: int, world: int, what: str | None) -> None:
        super().__init__("cpu")
        self.rank, self.world, self.local_rank, self.asked, self.what = rank, world, rank, 0, what

    def should_stop(self) -> bool:
        self.asked += 1
        if self.asked == STEP and self.what is not None:
            time.sleep(TIMEOUT_S / 8)  # so that it has said where it is
        if self.asked == STEP and self.what == "late":
            time.sleep(2 * TIMEOUT_S)
        elif self.asked == STEP and self.what == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        elif self.asked == STEP and self.what == "frozen":
            os.kill(os.getpid(), signal.SIGSTOP)
        elif self.asked == STEP and self.what == "failed":
            raise MemoryError("no memory is left")
        return False


class Heard(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []
        logging.getLogger("trainer.worker").addHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


def _train(rank: int, world: int, tree: dict[str, Any], victim: int, what: str) -> tuple[Any, float, list[str]]:
    """What a run says on this rank, the seconds that it took, and its log lines."""
    start, heard = time.monotonic(), Heard()
    try:
        said: Any = run(RunConfig.model_validate(tree), Victim(rank, world, what if rank == victim else None))["step"]
    except (PeerError, MemoryError) as error:
        said = str(error)
    return said, time.monotonic() - start, heard.lines


def _tree(tmp_path: Any, workers: int = 2) -> dict[str, Any]:
    parallel = {"parallel__workers": workers, "parallel__expert_parallel": 2, "parallel__timeout_s": TIMEOUT_S}
    return config(packed(tmp_path / "data"), tmp_path, **parallel).model_dump(mode="json")


def test_a_late_rank_is_waited_for_and_named_as_living(tmp_path):
    (first, seconds, lines), (second, _, _) = run_ranks(_train, 2, _tree(tmp_path), 1, "late")
    assert first == second > STEP
    assert seconds > 2 * TIMEOUT_S
    waiting = [line for line in lines if line.startswith("waiting for 4 s at step 3 for rank 1 (")]
    assert waiting and waiting[0].endswith("), which is at step 3")


@pytest.mark.parametrize(("what", "victim"), [("killed", 1), ("killed", 0), ("frozen", 1), ("frozen", 0)])
def test_a_rank_that_is_gone_is_named_on_every_other_rank(tmp_path, what, victim):
    others = [rank for rank in (0, 1) if rank != victim]
    found = run_ranks(_train, 2, _tree(tmp_path), victim, what, lost=[victim])
    for rank in others:
        said, seconds, lines = found[rank]
        assert said.startswith(f"rank {rank} cannot go on at step 3: rank {victim} (")
        assert said.endswith("is gone, last heard of at step 3; look at that rank's log and its host's memory")
        assert seconds < 4 * TIMEOUT_S
        # Said by the thread, too: under NCCL the main one waits in an exchange that is aborted with the process.
        assert [line for line in lines if line.startswith(f"rank {rank} at step 3: rank {victim} (")]


def test_the_error_of_a_rank_that_fails_alone_is_what_the_others_say(tmp_path):
    (said, _, _), (own, _, _) = run_ranks(_train, 2, _tree(tmp_path), 1, "failed")
    assert own == "no memory is left"
    assert said.startswith("rank 0 cannot go on at step 3: rank 1 (")
    assert ") ended at step 3: MemoryError: no memory is left; look at" in said


def _uneven(rank: int, world: int, stopped: bool) -> tuple[str, float]:
    """Rank 0 alone enters an exchange of the expert-parallel group, which is one of payload."""
    from parallel import Engine, MoEConfig, MoELayer, ParallelConfig, create_mesh, init_distributed

    parallel = ParallelConfig(workers=2, expert_parallel=2, timeout_s=2.0)
    moe = MoEConfig(experts=2, top_k=1, hidden=8)
    init_distributed("cpu", parallel.timeout_s)
    mesh = create_mesh(parallel, moe)
    Engine(MoELayer(8, moe, 1, 0, 0, mesh.dispatcher()), mesh, lr=0.1)
    with beating(parallel.timeout_s):
        doing("step 7")
        if rank == 1:
            time.sleep(0.5)  # so that it has said where it is
            if stopped:
                os.kill(os.getpid(), signal.SIGSTOP)
            time.sleep(10)
            return "", 0.0
        start = time.monotonic()
        with pytest.raises(PeerError) as caught, named_failures(parallel.timeout_s):
            dist.all_reduce(torch.zeros(1), group=mesh.ep_group)
        return str(caught.value), time.monotonic() - start


def test_payload_keeps_to_the_timeout_and_says_that_the_other_rank_lives():
    said, seconds = run_ranks(_uneven, 2, False)[0]
    assert said.startswith("rank 0 waited more than 2 s at step 7 for a rank that lives and did not join: look at what")
    assert 2 <= seconds < 8


def test_payload_that_waits_for_a_frozen_rank_names_it():
    said, seconds = run_ranks(_uneven, 2, True, lost=[1])[0]
    assert said.startswith("rank 0 cannot go on at step 7: rank 1 (")
    assert ") is gone, last heard of at step 7" in said
    assert 2 <= seconds < 8


def _silence(rank: int, world: int) -> list[float]:
    """Two ranks of three end with an error in one exchange; how old the news is on the third."""
    heard = Heard()
    with pytest.raises(PeerError, match=r"rank 2 \(\w+\) is gone"), beating(3.0):
        doing("step 1")
        if rank == 2:
            time.sleep(0.6)
            os.kill(os.getpid(), signal.SIGSTOP)
        start = time.monotonic()
        collectives.meet()
    return [time.monotonic() - start, len(heard.lines)]


def test_every_rank_hears_of_the_same_one_before_payload_would_time_out():
    found = run_ranks(_silence, 3, lost=[2])
    # Two thirds of the timeout after the last beat, and no line more than one a rank.
    assert all(2.0 <= seconds < 3.5 + 2 and lines == 1 for seconds, lines in found[:2])


def _own_store(rank: int, world: int, number: int) -> str:
    """The first of two ranks takes the job's store with it."""
    meeting = dist.distributed_c10d._get_default_store()
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False) if rank == 0 else None
    if store is not None:
        meeting.set("port", str(store.port))
    port = int(meeting.get("port"))
    dist.destroy_process_group()
    store = store or dist.TCPStore("127.0.0.1", port, is_master=False)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=world)
    with pytest.raises(PeerError) as caught, beating(3.0):
        doing("step 1")
        if rank == 0:
            time.sleep(0.6)
            os.kill(os.getpid(), number)
        collectives.meet()
    return str(caught.value)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_the_rank_that_holds_the_store_is_named_as_well(number):
    said = run_ranks(_own_store, 2, number, lost=[0], timeout_s=30)[1]
    assert said.startswith("rank 1 cannot go on at step 1: rank 0 (")
    assert ") is gone, last heard of at step 1; or the launcher is, if that holds the job's store; look at" in said


def test_other_errors_pass_as_they_are():
    with pytest.raises(RuntimeError, match="shape") as caught, named_failures(1.0):
        raise RuntimeError("shape mismatch")
    assert not isinstance(caught.value, PeerError)


def _rows(rank: int, world: int) -> dict[str, Any]:
    """Ranks hold 5, 0 and 11 rows of 8 bytes; a round brings at most 48 bytes, so 2 rows a rank."""
    collectives.ROUND_BYTES = 48
    sizes: list[tuple[str, int, int]] = []
    original = dist.all_to_all_single, dist.broadcast

    def all_to_all(arriving: Any, leaving: Any, *args: Any, **kwargs: Any) -> Any:
        sizes.append(("rows", arriving.nbytes, leaving.nbytes))
        return original[0](arriving, leaving, *args, **kwargs)

    def broadcast(values: Any, *args: Any, **kwargs: Any) -> Any:
        sizes.append(("all", values.nbytes, values.nbytes))
        return original[1](values, *args, **kwargs)

    dist.all_to_all_single, dist.broadcast = all_to_all, broadcast
    own = torch.arange(100 * rank, 100 * rank + (5, 0, 11)[rank]).reshape(-1, 1)
    first, everywhere = rows_to_first(own), rows_everywhere(own)
    return {"first": None if first is None else first[:, 0].tolist(), "all": everywhere[:, 0].tolist(), "sizes": sizes}


def test_rows_come_in_rounds_of_bounded_size_without_padding_and_to_the_first_rank_only():
    found = run_ranks(_rows, 3)
    expected = [*range(5), *range(200, 211)]
    assert [one["first"] for one in found] == [expected, None, None]
    assert all(one["all"] == expected for one in found)
    # (received, sent) bytes of each round: 2 rows of ranks 0 and 2, then what they have left.
    rows = [[pair[1:] for pair in one["sizes"] if pair[0] == "rows"] for one in found]
    assert rows[0] == [(32, 16), (32, 16), (24, 8), (16, 0), (16, 0), (8, 0)]
    assert rows[1] == [(0, 0)] * 6
    assert rows[2] == [(0, 16)] * 5 + [(0, 8)]
    # 5 and 11 rows in parts of at most 6.
    assert [pair[1] for pair in found[1]["sizes"] if pair[0] == "all"] == [40, 48, 40]
