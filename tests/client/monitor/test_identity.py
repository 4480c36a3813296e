import itertools
import os
import subprocess
import sys

import pytest

from internist.errors import ConfigurationError
from internist.monitor import identity
from internist.monitor.identity import Identity, checked_id, identify
from internist.schema.wire import VERSION, RunStart
from internist.ship.spool import Spool

PATIENCE_S = 120.0


def who(tmp_path, id=None, resume="auto", **environ) -> Identity:
    return identify(id=id, resume=resume, directory=tmp_path, environ=environ)


def leave_spool(root, attempt, started, *, run="r", parent=None):
    start = RunStart(
        version=VERSION, run=run, attempt=attempt, rank=0, world_size=1, project="p", name="n", every=1,
        started_at_ms=started, parent=parent,
    )  # fmt: skip
    Spool(root, start).close()


def test_alone_a_process_draws_128_random_bits_for_run_and_attempt(tmp_path):
    one, other = who(tmp_path), who(tmp_path)

    assert len({one.run, one.attempt, other.run, other.attempt}) == 4
    assert all(len(bytes.fromhex(value)) == 16 for value in (one.run, one.attempt))
    assert (one.rank, one.world_size, one.local_rank, one.parent, one.mesh) == (0, 1, 0, None, {})


def test_arguments_win_over_the_environment(tmp_path):
    environ = {"INTERNIST_RUN_ID": "from-env", "INTERNIST_ATTEMPT": "a-1", "TORCHELASTIC_RUN_ID": "elastic"}

    assert who(tmp_path, **environ).run == "from-env"
    assert who(tmp_path, id="mine", **environ).run == "mine"
    assert who(tmp_path, id="mine", **environ).attempt == "a-1"


def test_rank_and_world_size_come_from_the_environment(tmp_path, caplog):
    found = who(tmp_path, id="r", INTERNIST_ATTEMPT="a", RANK="3", WORLD_SIZE="4", LOCAL_RANK="1")

    assert (found.rank, found.world_size, found.local_rank, found.mesh) == (3, 4, 1, {"dp": 3})
    assert caplog.records == []


def test_ranks_that_cannot_agree_are_told_how_to(tmp_path, caplog):
    who(tmp_path, RANK="1", WORLD_SIZE="2")

    assert "init_process_group" in caplog.text
    assert "INTERNIST_RUN_ID and INTERNIST_ATTEMPT" in caplog.text


LAUNCHED = {
    "srun": (
        {"SLURM_STEP_NUM_TASKS": "4", "SLURM_LOCALID": "1", "SLURM_JOB_ID": "77", "SLURM_STEP_ID": "0"},
        "SLURM_PROCID",
        {"SLURM_RESTART_COUNT": "1"},
    ),
    "mpirun": (
        {"OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_LOCAL_RANK": "1", "PMIX_NAMESPACE": "prterun-n0-88@1"},
        "OMPI_COMM_WORLD_RANK",
        {"PMIX_NAMESPACE": "prterun-n0-99@1"},
    ),
}


@pytest.mark.parametrize("launcher", LAUNCHED)
def test_ranks_that_a_launcher_starts_agree_before_they_meet(tmp_path, caplog, monkeypatch, launcher):
    environ, rank, another = LAUNCHED[launcher]

    def said(number, **more):
        monkeypatch.setattr(identity, "_CALLS", itertools.count())  # as in a process of its own
        return who(tmp_path, **{**environ, rank: str(number), **more})

    ranks = [said(number) for number in range(4)]

    assert [(each.rank, each.world_size, each.local_rank) for each in ranks] == [(n, 4, 1) for n in range(4)]
    assert len({(each.run, each.attempt) for each in ranks}) == 1
    assert said(0, **another).attempt != ranks[0].attempt
    assert caplog.records == []


def test_a_batch_script_that_starts_one_process_is_no_job_of_many(tmp_path):
    found = who(tmp_path, SLURM_PROCID="0", SLURM_NTASKS="4", SLURM_STEP_NUM_TASKS="1", SLURM_JOB_ID="77")

    assert (found.rank, found.world_size) == (0, 1)


def test_torchelastic_gives_every_rank_the_same_run_and_attempt(tmp_path):
    environ = {
        "TORCHELASTIC_RUN_ID": "job-7", "TORCHELASTIC_RESTART_COUNT": "2", "MASTER_ADDR": "n0", "MASTER_PORT": "4000",
        "WORLD_SIZE": "2",
    }  # fmt: skip
    zero, one = (who(tmp_path, **environ, RANK=rank) for rank in "01")

    assert zero.run == one.run == "job-7"
    assert zero.attempt == one.attempt
    assert zero.attempt.startswith("2-")
    assert who(tmp_path, **environ | {"TORCHELASTIC_RESTART_COUNT": "3"}).attempt != zero.attempt
    assert who(tmp_path, **environ | {"MASTER_PORT": "4001"}).attempt != zero.attempt


def test_the_torchelastic_id_none_is_none(tmp_path):
    assert who(tmp_path, TORCHELASTIC_RUN_ID="none", TORCHELASTIC_RESTART_COUNT="0").run != "none"


def test_a_torchelastic_id_that_is_no_id_becomes_one(tmp_path):
    found = who(tmp_path, TORCHELASTIC_RUN_ID="team/job 7", TORCHELASTIC_RESTART_COUNT="0")

    assert checked_id(found.run, "run") == found.run


@pytest.mark.parametrize("value", ["a/b", "..", ".", "x" * 129, "a b", "ü", "a\n", ""])
def test_what_is_no_id_is_refused_by_name_and_value(tmp_path, value):
    with pytest.raises(ConfigurationError, match="id="):
        who(tmp_path, id=value)
    if value:
        with pytest.raises(ConfigurationError, match="INTERNIST_ATTEMPT="):
            who(tmp_path, INTERNIST_ATTEMPT=value)


@pytest.mark.parametrize("value", ["a", "x" * 128, "A.b_c-9", "...", "-"])
def test_ids_are_letters_digits_points_and_dashes(value):
    assert checked_id(value, "id") == value


@pytest.mark.parametrize("environ", [{"RANK": "x"}, {"WORLD_SIZE": "-1"}, {"RANK": "2", "WORLD_SIZE": "2"}])
def test_a_rank_that_is_none_is_refused(tmp_path, environ):
    with pytest.raises(ConfigurationError, match=next(iter(environ))):
        who(tmp_path, **environ)


def test_a_named_run_resumes_its_newest_earlier_attempt(tmp_path):
    leave_spool(tmp_path, "z-first", 10)
    leave_spool(tmp_path, "a-second", 20)
    leave_spool(tmp_path, "other", 30, run="s")

    assert who(tmp_path, id="r").parent == "a-second"
    assert who(tmp_path, INTERNIST_RUN_ID="r", resume="must").parent == "a-second"
    assert who(tmp_path, id="r", resume="never").parent is None
    assert who(tmp_path, id="fresh").parent is None
    assert who(tmp_path).parent is None


def test_an_attempt_that_goes_on_keeps_its_parent(tmp_path):
    leave_spool(tmp_path, "first", 10)
    leave_spool(tmp_path, "second", 20, parent="first")

    assert who(tmp_path, id="r", INTERNIST_ATTEMPT="second").parent == "first"
    assert who(tmp_path, id="r", INTERNIST_ATTEMPT="first").parent is None


def test_what_must_be_resumed_has_to_be_there(tmp_path):
    with pytest.raises(ConfigurationError, match="holds no earlier attempt of run 'r'"):
        who(tmp_path, id="r", resume="must")
    with pytest.raises(ConfigurationError, match="needs the run to resume"):
        who(tmp_path, resume="must")
    with pytest.raises(ConfigurationError, match="resume='perhaps'"):
        who(tmp_path, resume="perhaps")


RANK_SCRIPT = """
import os, sys
from datetime import timedelta
from pathlib import Path
import torch.distributed as dist
from internist.monitor import identity
from internist.monitor.identity import identify
rank, watchers = int(sys.argv[1]), sys.argv[3].split(",")
identity._AGREEMENT_S = float(sys.argv[4])
dist.init_process_group("gloo", init_method=f"file://{sys.argv[2]}", rank=rank, world_size=2)
if str(rank) in watchers:
    for _ in range(2):
        who = identify(id=None, resume="auto", directory=Path(sys.argv[2]).parent, environ={})
        print(who.run, who.attempt, who.rank, who.world_size)
dist.barrier()
dist.destroy_process_group()
"""


def two_ranks(tmp_path, watchers: str, agreement_s: float = 30.0) -> list[list[str]]:
    script = [sys.executable, "-W", "ignore", "-c", RANK_SCRIPT]
    environ = {**os.environ, "OMP_NUM_THREADS": "1"}
    ranks = [
        subprocess.Popen(
            [*script, str(rank), str(tmp_path / "meeting"), watchers, str(agreement_s)],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environ,
        )
        for rank in range(2)
    ]  # fmt: skip
    outputs = [process.communicate(timeout=PATIENCE_S) for process in ranks]
    assert [process.returncode for process in ranks] == [0, 0], outputs
    return [out.splitlines() for out, _ in outputs]


def test_ranks_agree_through_the_store_and_each_watch_is_a_run_of_its_own(tmp_path):
    zero, one = two_ranks(tmp_path, "0,1")

    assert [line.split()[:2] for line in zero] == [line.split()[:2] for line in one]
    assert zero[0].split()[0] != zero[1].split()[0]
    assert [line.split()[2:] for line in (zero[0], one[0])] == [["0", "2"], ["1", "2"]]


def test_rank_0_may_watch_alone(tmp_path):
    zero, one = two_ranks(tmp_path, "0")

    assert (len(zero), one) == (2, [])


def test_a_rank_that_waits_in_vain_reports_a_run_of_its_own(tmp_path):
    zero, one = two_ranks(tmp_path, "1", agreement_s=0.2)

    assert (zero, len(one)) == ([], 2)


def test_torch_is_not_imported_to_know_who_speaks():
    script = "import sys; import internist.monitor.identity; sys.exit('torch' in sys.modules)"

    assert subprocess.run([sys.executable, "-c", script], timeout=PATIENCE_S).returncode == 0
    assert identity._AGREEMENT_S == 30.0
