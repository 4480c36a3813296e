"""The command: every kind of rounds, on one database after the other."""

import argparse
import os
import random
import sys
import time
from contextlib import AbstractContextManager

from tests.torture.postgres import postgres_place
from tests.torture.rounds import ROUNDS, Place, fits, sqlite_place

PLACES = {"sqlite": sqlite_place, "postgresql": postgres_place}


def main(arguments: list[str]) -> int:
    """Torture each kind of database, and say what came of it."""
    kinds = [kind.__name__ for kind in ROUNDS]
    parser = argparse.ArgumentParser(prog="python -m tests.torture", description=__doc__)
    parser.add_argument("--rounds", type=int, default=200, help="of each kind, on each database (default: 200)")
    parser.add_argument("--only", choices=kinds, nargs="+", default=kinds, help="kinds of rounds (default: all)")
    parser.add_argument("--on", choices=list(PLACES), nargs="+", default=list(PLACES), help="databases (default: both)")
    parser.add_argument("--seed", type=int, default=None, help="where to begin (default: another every time)")
    options = parser.parse_args(arguments)
    seed = options.seed if options.seed is not None else int.from_bytes(os.urandom(4), "little")
    print(f"{options.rounds} rounds of each kind from seed {seed}", flush=True)
    for name in options.on:
        for kind in ROUNDS:
            place: AbstractContextManager[Place] = PLACES[name]()
            with place as found:
                if kind.__name__ in options.only and fits(kind, found):
                    began = time.monotonic()
                    said = kind(found, options.rounds, random.Random(seed))
                    print(f"{name}: {said} ({time.monotonic() - began:.0f} s)", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
