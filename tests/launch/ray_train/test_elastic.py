"""What is asked of the workers when nodes come and go, without a Ray: the mailbox, the count of places, the watch."""

from __future__ import annotations

import itertools
import random
import re
from types import SimpleNamespace

import pytest

from launch.cluster.nodes import Sizes, fitting_workers, placement_problem
from launch.ray_train import node_watch as watch
from launch.ray_train.mailbox import Attempt, Failure, Mailbox, Seats
from launch.ray_train.node_watch import NodeWatch
from parallel.config import ParallelConfig
from trainer.config.errors import RecipeError
from trainer.config.recipe import load_recipe
from trainer.config.run_config import check_parallel

CPU = {"CPU": 1.0}


def arrived(*nodes: str) -> Mailbox:
    """A mailbox at which all workers of an attempt have arrived, one on each node named."""
    mailbox = Mailbox()
    mailbox.begin_attempt()
    for rank, node in enumerate(nodes):
        mailbox.arrive(rank, len(nodes), node)
    return mailbox


def test_the_greater_wish_counts_and_only_stop_outlives_the_attempt():
    mailbox = arrived("a", "b")
    mailbox.ask("save", "drain")
    mailbox.granted()
    assert mailbox.wish() is None
    mailbox.ask("regroup", "room")
    mailbox.ask("save", "drain")
    assert (mailbox.wish(), mailbox.regrouping()) == ("regroup", None)
    assert mailbox.end() == "regroup"
    mailbox.ask("stop", "signal 15")  # too late for this attempt: another rank was already told to start again
    assert (mailbox.end(), mailbox.wish()) == ("regroup", "stop")
    mailbox.begin_attempt()
    assert (mailbox.wish(), mailbox.end(), mailbox.regrouping()) == ("stop", "stop", None)


def test_seats_are_known_while_all_workers_are_at_work():
    mailbox = Mailbox()
    mailbox.begin_attempt()
    mailbox.arrive(1, 2, "b")
    assert mailbox.seats() is None
    mailbox.arrive(0, 2, "a")
    assert mailbox.seats() == Seats(2, {"a", "b"})
    mailbox.fail(Failure(1, False, "lost"))
    assert mailbox.seats() is None
    attempt = mailbox.begin_attempt()
    assert attempt.number == 2 and attempt.failed_at is not None
    mailbox.arrive(0, 1, "a")
    assert mailbox.seats() == Seats(1, {"a"}) and mailbox.begin_attempt() == Attempt(3, None)


@pytest.mark.parametrize(
    ("nodes", "needs", "count"),
    [
        ([], CPU, 0),
        ([{"CPU": 0.0}, {"CPU": 2.0}, {"CPU": 1.5}], CPU, 3),
        ([{"CPU": 8.0, "GPU": 2.0}, {"CPU": 1.0, "GPU": 4.0}, {"CPU": 8.0}], {"CPU": 1.0, "GPU": 1.0}, 3),
        ([{"CPU": 0.3}], {"CPU": 0.1}, 3),
    ],
)
def test_places_on_nodes(nodes, needs, count):
    assert fitting_workers({str(i): node for i, node in enumerate(nodes)}, needs) == count


class Remote:
    """Calls of a mailbox in this process, as if it were an actor; `ray.get` is the identity."""

    def __init__(self, mailbox: Mailbox) -> None:
        self._mailbox = mailbox

    def __getattr__(self, name):
        method = getattr(self._mailbox, name)
        return type("Method", (), {"remote": staticmethod(method)})


@pytest.fixture
def cluster(monkeypatch):
    """Nodes that a test adds, drains and takes away; every look is due."""
    staying, leaving, ticks = {}, set(), itertools.count(step=watch.LOOK_SECONDS)
    monkeypatch.setattr(watch.ray, "get", lambda value: value)
    monkeypatch.setattr(watch, "staying_nodes", lambda: {k: v for k, v in staying.items() if k not in leaving})
    monkeypatch.setattr(watch, "leaving_nodes", lambda: set(leaving))
    monkeypatch.setattr(watch.time, "monotonic", lambda: next(ticks))
    return staying, leaving


def look(node_watch: NodeWatch, times: int = 1) -> None:
    for _ in range(times):
        node_watch.look()


def test_growth_waits_until_the_nodes_stay_the_same(cluster):
    staying, _ = cluster
    mailbox = arrived("a")
    staying.update(a=CPU)
    eye = NodeWatch(Remote(mailbox), Sizes(CPU, 1, 4))
    look(eye, 5)
    assert mailbox.wish() is None
    staying.update(b=CPU)
    look(eye, watch.LOOKS_BEFORE_GROWTH - 1)
    staying.update(c=CPU)
    look(eye, watch.LOOKS_BEFORE_GROWTH - 1)
    assert mailbox.wish() is None
    look(eye)
    assert (mailbox.wish(), mailbox.end(), mailbox.regrouping()) == (
        "regroup",
        "regroup",
        "there is room for 3 workers instead of 1",
    )


@pytest.mark.parametrize(("least", "most", "wish"), [(1, 2, "regroup"), (2, 2, "save"), (2, 3, "save")])
def test_a_node_that_leaves_is_left_if_enough_others_stay(cluster, least, most, wish):
    staying, leaving = cluster
    mailbox = arrived("a", "b")
    staying.update(a=CPU, b=CPU)
    eye = NodeWatch(Remote(mailbox), Sizes(CPU, least, most))
    look(eye)
    leaving.add("other")
    look(eye)
    assert mailbox.wish() is None
    leaving.add("b")
    look(eye)
    assert mailbox.wish() == wish
    mailbox.granted()
    look(eye, 3)
    assert mailbox.wish() == (None if wish == "save" else wish)  # said once


@pytest.mark.parametrize(
    ("places", "least", "degrees", "workers"),
    [
        ([8, 8], 4, (4, 2, 1), 16),
        ([8, 7], 4, (8, 4, 2, 1), 8),  # whole groups only
        ([8, 7], 10, (8, 4, 2, 1), 12),  # too few: groups of 4 will do
        ([3, 3], 4, (1,), 6),  # groups may reach across nodes
        ([1, 1], 1, (2, 1), 2),
        ([1], 2, (2, 1), 1),
        ([8, 8, 8], 4, (8, 4), 16),  # no more than asked for
    ],
)
def test_elastic_runs_take_whole_groups_of_a_node(places, least, degrees, workers):
    nodes = {str(i): {"CPU": float(count)} for i, count in enumerate(places)}
    assert Sizes(CPU, least, 16, degrees).fitting(nodes) == workers


@pytest.mark.parametrize(
    ("places", "workers", "problem"),
    [
        ([8, 8], 16, None),
        ([8], 8, None),
        ([8, 4], 8, None),  # one node will do
        ([], 16, None),  # nodes are still to come
        ([8, 4], 12, r"nodes of 8, 4 workers: choose one of \[1, 2, 4\], use nodes of one size"),
        ([6, 6], 12, r"nodes of 6 workers: choose one of \[1, 2, 3, 6\]"),
    ],
)
def test_nodes_that_cannot_hold_whole_groups_are_refused(places, workers, problem):
    parallel = ParallelConfig(workers=workers, expert_parallel=4)
    said = placement_problem(parallel, places)
    assert said is None if problem is None else re.search(problem, said), said
    across = parallel.model_copy(update={"experts_across_nodes": True})
    assert placement_problem(across, places) is None


def test_ray_numbers_ranks_node_by_node_and_gpu_by_gpu_in_whatever_order_workers_start():
    """Ray's own code, which nothing documents: what expert-parallel groups inside nodes rest on."""
    from ray.train.v2._internal.execution.worker_group import WorkerGroup

    places = [(f"n{node}", gpu) for node in range(3) for gpu in range(4)]
    for seed in range(5):
        random.Random(seed).shuffle(places)
        workers = [
            SimpleNamespace(
                resources={"GPU": 1},
                metadata=SimpleNamespace(node_id=node, node_ip=f"ip-{node}", accelerator_ids={"GPU": [str(gpu)]}),
            )
            for node, gpu in places
        ]
        ranked = WorkerGroup._assign_worker_ranks(workers)
        assert [worker.distributed_context.world_rank for worker in ranked] == list(range(12))
        assert [worker.distributed_context.local_rank for worker in ranked] == [0, 1, 2, 3] * 3
        for node in (ranked[:4], ranked[4:8], ranked[8:]):
            assert [worker.metadata.accelerator_ids["GPU"] for worker in node] == [["0"], ["1"], ["2"], ["3"]]
            assert len({worker.metadata.node_id for worker in node}) == 1


def test_fewest_workers_cannot_be_more_than_most():
    with pytest.raises(RecipeError, match=r"cluster.min_workers=3 is more than parallel.workers=2"):
        check_parallel(load_recipe("synthetic_small", ["cluster.min_workers=3", "parallel.workers=2"]))
