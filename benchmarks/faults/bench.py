"""What the judge says of healthy runs and of sick ones, beside what an alarm on the loss would have said.

    python -m benchmarks.faults.bench [--short] [--folder PATH] [--workers N] [--minutes M] [--only GLOB] [--from OLD]
        [--docs PATH]

Small runs are trained, watched and judged as a user's would be (benchmarks/faults/clinic.py). What a run gave is kept
as a file of the folder, and such a run is not made again: the bench may be stopped at any moment. After a change of the
judge give it another folder: with `--from OLD` nothing is trained, and runs of the old one are judged anew. At the end
the report of all that is there is printed, and kept as `report.json`.
"""

import argparse
import fnmatch
import json
import multiprocessing
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.faults.clinic import clinic
from benchmarks.faults.report import markdown, summarise
from benchmarks.faults.running import judge_again, run
from benchmarks.faults.trials import Trial, all_trials, short_trials

FOLDER = Path(".benchmarks/faults")
SPOOLS = "spools"
"""Where the spools of its runs are in a folder."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Make the runs that are missing, then report."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.faults.bench", description=__doc__.partition("\n")[0])
    parser.add_argument("--short", action="store_true", help="two faults and their twins, in a minute")
    parser.add_argument("--folder", type=Path, default=FOLDER, help=f"where results are kept (default {FOLDER})")
    parser.add_argument("--workers", type=int, default=2, help="processes of one thread each (default 2)")
    parser.add_argument(
        "--minutes", type=float, default=30.0, help="no run is begun after these (default 30; 0: report)"
    )
    parser.add_argument("--only", default="*", help="names of runs, as a pattern of the shell")
    parser.add_argument("--docs", type=Path, help="write the report there as Markdown, too")
    parser.add_argument("--from", dest="old", type=Path, help="judge the runs of that folder anew; train none")
    options = parser.parse_args(arguments)
    options.folder.mkdir(parents=True, exist_ok=True)
    trials = short_trials() if options.short else all_trials()
    trials = [trial for trial in trials if fnmatch.fnmatchcase(trial.name, options.only)]
    if options.old is not None:
        trials = [trial for trial in trials if _kept(trial, options.old).exists()]
    missing = [trial for trial in trials if not _kept(trial, options.folder).exists()]
    print(f"{len(trials)} runs, {len(trials) - len(missing)} of them made before", flush=True)
    if options.minutes > 0:
        shares = [missing[number :: options.workers] for number in range(options.workers)]
        make_all(shares, options.folder, old=options.old, until=time.time() + 60 * options.minutes)
    found = [
        json.loads(_kept(trial, options.folder).read_text())
        for trial in trials
        if _kept(trial, options.folder).exists()
    ]
    report = summarise(found, planned=len(trials))
    (options.folder / "report.json").write_text(json.dumps(report, indent=1))
    text = markdown(report)
    print(text)
    if options.docs is not None:
        options.docs.write_text(text)
    return 0


def make_all(shares: Sequence[Sequence[Trial]], folder: Path, *, old: Path | None, until: float) -> None:
    """Make runs in one process per share.

    Raises:
        RuntimeError: a process failed; its error is on the terminal.
    """
    shares = [share for share in shares if share]
    if len(shares) == 1:
        make(shares[0], folder, old, until)
        return
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=make, args=(share, folder, old, until)) for share in shares]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    failed = [worker.exitcode for worker in workers if worker.exitcode]
    if failed:
        raise RuntimeError(f"{len(failed)} of {len(workers)} processes failed, with exit status {failed[0]}")


def make(trials: Sequence[Trial], folder: Path, old: Path | None, until: float) -> None:
    """Make runs one after the other, each kept as soon as it is over; none is begun after `until` (Unix time)."""
    with tempfile.TemporaryDirectory() as scratch, clinic(Path(scratch)) as server:
        for trial in trials:
            if time.time() >= until:
                return
            if old is None:
                found = run(trial, server, folder / SPOOLS)
            else:
                found = judge_again(json.loads(_kept(trial, old).read_text()), server, old / SPOOLS)
            draft = _kept(trial, folder).with_suffix(".draft")
            draft.write_text(json.dumps(found))
            draft.replace(_kept(trial, folder))
            print(f"{found['seconds']:6.1f} s  {trial.name}: {len(found['alerts'])} alerts", flush=True)


def _kept(trial: Trial, folder: Path) -> Path:
    return folder / f"{trial.name}.json"


if __name__ == "__main__":
    raise SystemExit(main())
