"""Ranks that wait for one another: in real processes, of which some are killed or frozen."""

from __future__ import annotations

import os
import signal
import time

import pytest
from rank_team import ranks

pytestmark = [pytest.mark.alone, pytest.mark.timeout(120)]


def talk(team, told):
    with team.barrier("preparing"):
        time.sleep(0.1 * team.rank)
    found = [team.broadcast({"of": "rank 0"} if team.rank == 0 else None), team.gather({"mine": "ü" * team.rank})]
    for _ in range(5):
        team.gather({})
    return found


def test_ranks_meet_and_end():
    with ranks(3, talk) as (_, told):
        for _ in range(3):
            _, found, _ = told.get(timeout=60)
            assert found == [{"of": "rank 0"}, [{"mine": "ü" * rank} for rank in range(3)]]


def rank_0_waits_the_others_work(team, told):
    with team.barrier("preparing"):
        pass
    told.put((team.rank, "ready", time.monotonic()))
    with team.barrier("sampling"):
        for _ in range(6000 if team.rank else 0):
            time.sleep(0.01)


@pytest.mark.parametrize(
    "how", [signal.SIGKILL, signal.SIGSTOP]
)  # stopped: as a machine that is gone, it closes nothing
@pytest.mark.parametrize("victim", [0, 2])
def test_when_a_rank_vanishes_those_that_wait_and_those_that_work_end_and_name_it(how, victim):
    with ranks(3, rank_0_waits_the_others_work, silence_s=2.0) as (processes, told):
        assert {told.get(timeout=60)[1] for _ in range(3)} == {"ready"}
        time.sleep(0.3)
        began = time.monotonic()
        os.kill(processes[victim].pid, how)
        ended = dict(told.get(timeout=30)[:2] for _ in range(2))
        assert time.monotonic() - began < 15
        for rank, process in enumerate(processes):
            if rank != victim:
                process.join(timeout=10)
                assert process.exitcode == 0
    assert ended.keys() == {0, 1, 2} - {victim}
    assert any(f"rank {victim} " in said for said in ended.values())
    for said in ended.values():
        assert said.startswith((f"ADGError: nothing was heard of rank {victim} (host ", "ADGError: rank 0 has ended"))
        assert said.endswith("What is sampled is kept; re-run the same command to resume")


def all_stop_for_a_while(team, told):
    with team.barrier("preparing"):
        pass
    told.put((team.rank, "ready", time.monotonic()))
    with team.barrier("sampling"):
        pass
    return "whole"


def test_a_job_that_is_suspended_as_a_whole_goes_on():
    with ranks(2, all_stop_for_a_while, silence_s=1.5) as (processes, told):
        assert {told.get(timeout=60)[1] for _ in range(2)} == {"ready"}
        for how in (signal.SIGSTOP, signal.SIGCONT):
            for process in processes:
                os.kill(process.pid, how)
            time.sleep(2 if how == signal.SIGSTOP else 0)
        assert [told.get(timeout=30)[1] for _ in range(2)] == ["whole"] * 2


def one_fails(team, told):
    with team.barrier("sampling"):
        if team.rank:
            raise ValueError("of the rows")


def test_an_error_of_one_rank_is_that_of_all():
    with ranks(2, one_fails) as (_, told):
        ended = dict(told.get(timeout=60)[:2] for _ in range(2))
    assert ended == {0: "ADGError: rank 1 failed while sampling: ValueError: of the rows", 1: "ValueError: of the rows"}
