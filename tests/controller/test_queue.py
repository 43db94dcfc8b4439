from __future__ import annotations

import asyncio
from collections import Counter
from contextlib import asynccontextmanager, suppress
from datetime import datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from funicular.adapters.clock import SystemClock
from funicular.controller.queue import FIRST_DELAY, LONGEST_DELAY, Schedule, WorkQueue, back_off
from funicular.controller.wiring import NotLeader
from funicular.errors import ApiUnavailable
from tests.controller.fakes import Observer, until

KEYS = st.sampled_from(["a", "b", "c", "d"])
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("add"), KEYS, st.booleans()),
        st.tuples(st.just("at"), KEYS, st.floats(0, 10)),
        st.tuples(st.just("take"), st.just(""), st.just(0)),
        st.tuples(st.just("done"), KEYS, st.just(0)),
        st.tuples(st.just("pass"), st.just(""), st.floats(0, 3)),
    ),
    max_size=60,
)


@given(STEPS)
def test_no_wake_up_is_lost_and_no_key_runs_twice(steps: list[tuple[str, str, float]]) -> None:
    """Against a model: a key that was woken since its last run began is ready, or will be when it is done."""
    schedule, now = Schedule(), 0.0
    owed: set[str] = set()  # woken after their last run began
    due: dict[str, float] = {}
    running: set[str] = set()
    for what, key, argument in steps:
        if what == "add":
            schedule.add(key, urgent=bool(argument))
            owed.add(key)
        elif what == "at":
            schedule.add_at(key, now + argument)
            due[key] = now + argument
        elif what == "pass":
            now += argument
            schedule.promote(now)
            passed = {k for k, at in due.items() if at <= now}
            owed |= passed
            due = {k: at for k, at in due.items() if k not in passed}
        elif what == "take":
            taken = schedule.take()
            if taken is not None:
                assert taken not in running
                assert taken in owed
                running.add(taken)
                owed.discard(taken)
        elif key in running:
            schedule.done(key)
            running.discard(key)
        assert set(schedule.ready) | schedule.dirty == owed
        assert len(schedule.ready) == len(set(schedule.ready))
        assert schedule.running == running
        assert schedule.next_due() == min(due.values(), default=None)


def test_replaced_appointments_do_not_pile_up() -> None:
    schedule = Schedule()
    for i in range(10_000):
        schedule.add_at("a", float(i))
    assert len(schedule._heap) < 100
    assert schedule.next_due() == 9999.0


def test_urgent_goes_before_what_waits() -> None:
    schedule = Schedule()
    for key in ("a", "b", "c"):
        schedule.add(key)
    schedule.add("c", urgent=True)
    schedule.add("new", urgent=True)
    assert [schedule.take() for _ in range(5)] == ["new", "c", "a", "b", None]


def test_back_off_grows_to_ten_seconds_and_no_further() -> None:
    delays = [back_off(n) for n in range(1, 100)]
    assert delays[0] == FIRST_DELAY
    assert max(delays) == LONGEST_DELAY == delays[-1]
    assert delays == sorted(delays)


@asynccontextmanager
async def running(queue: WorkQueue, reconcile):
    task = asyncio.create_task(queue.run(reconcile))
    yield
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task


def make_queue(workers: int = 4) -> tuple[WorkQueue, Observer]:
    observer = Observer()
    return WorkQueue(SystemClock(), workers=workers, observer=observer), observer


async def test_a_key_never_runs_twice_at_a_time_and_at_most_so_many_keys_run() -> None:
    queue, _ = make_queue(workers=3)
    busy: Counter[str] = Counter()
    runs: Counter[str] = Counter()
    most = 0

    async def reconcile(key: str) -> datetime | None:
        nonlocal most
        busy[key] += 1
        assert busy[key] == 1
        most = max(most, busy.total())
        await asyncio.sleep(0.001)
        busy[key] -= 1
        runs[key] += 1
        return None

    async with running(queue, reconcile):
        for i in range(200):
            queue.add(f"k{i % 7}", urgent=i % 5 == 0)
            if i % 20 == 0:
                await asyncio.sleep(0.001)
        await until(lambda: not busy.total() and len(runs) == 7)
    assert most == 3


async def test_woken_while_it_runs_it_runs_once_more() -> None:
    queue, _ = make_queue()
    runs, gate = [], asyncio.Event()

    async def reconcile(key: str) -> None:
        runs.append(key)
        await gate.wait()

    async with running(queue, reconcile):
        queue.add("a")
        await until(lambda: runs == ["a"])
        for _ in range(5):
            queue.add("a")
        gate.set()
        await until(lambda: runs == ["a", "a"])
        await asyncio.sleep(0.02)
        assert runs == ["a", "a"]


@pytest.mark.parametrize(
    ("failure", "result"),
    [
        pytest.param(ApiUnavailable("503"), "retry", id="what may go through later comes again"),
        pytest.param(KeyError("bug"), "error", id="a bug is counted and comes again"),
    ],
)
async def test_a_failure_is_never_lost(failure: Exception, result: str) -> None:
    queue, observer = make_queue()
    runs = 0

    async def reconcile(key: str) -> None:
        nonlocal runs
        runs += 1
        if runs == 1:
            raise failure

    async with running(queue, reconcile):
        queue.add("a")
        await until(lambda: observer.results == [result, "ok"])


async def test_a_lost_lease_is_not_tried_again() -> None:
    queue, observer = make_queue()

    async def reconcile(key: str) -> None:
        raise NotLeader("lost")

    async with running(queue, reconcile):
        queue.add("a")
        await until(lambda: observer.results == ["not_leader"])
        await asyncio.sleep(FIRST_DELAY + 0.1)
        assert observer.results == ["not_leader"]


async def test_the_next_appointment_is_kept_and_an_earlier_event_replaces_it() -> None:
    queue, observer = make_queue()
    clock = SystemClock()

    async def reconcile(key: str) -> datetime | None:
        return clock.now() + timedelta(seconds=0.05 if len(observer.results) < 3 else 60)

    async with running(queue, reconcile):
        queue.add_after("a", clock.now() + timedelta(seconds=60))
        queue.add_after("a", clock.now() + timedelta(seconds=0.05))
        await until(lambda: len(observer.results) == 4)
        queue.add("a")
        await until(lambda: len(observer.results) == 5)
