"""Runs scripts, each in a process of its own that is forked after the libraries were imported once.

`python -m tests.stacks.recipe_runner DIRECTORY SCRIPT ...`: each leaves its output and spool in DIRECTORY/its name, its
exit status to `status` there.
"""

import atexit
import multiprocessing
import os
import runpy
import sys
from pathlib import Path


def main(directory: Path, scripts: list[Path]) -> None:
    """Run them one after the other."""
    import accelerate  # noqa: F401
    import lightning  # noqa: F401
    import peft  # noqa: F401
    from transformers import LlamaForCausalLM, Trainer  # noqa: F401

    import internist.integrations.accelerate
    import internist.integrations.lightning
    import internist.integrations.transformers  # noqa: F401

    context = multiprocessing.get_context("fork")
    for script in scripts:
        own = directory / script.stem
        own.mkdir()
        process = context.Process(target=_run, args=(script, own))
        process.start()
        process.join()
        (own / "status").write_text(str(process.exitcode))


def _run(script: Path, directory: Path) -> None:
    os.environ.update(INTERNIST_MODE="offline", INTERNIST_DIR=str(directory))
    os.chdir(directory)
    output = os.open("output", os.O_WRONLY | os.O_CREAT)
    os.dup2(output, 1)
    os.dup2(output, 2)
    runpy.run_path(str(script), run_name="__main__")
    atexit._run_exitfuncs()  # a forked process leaves without them


if __name__ == "__main__":
    main(Path(sys.argv[1]), [Path(name) for name in sys.argv[2:]])
