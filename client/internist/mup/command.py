"""The command `internist mup`: hyperparameters for a larger model, for people with a training stack of their own."""

import argparse
import sys

from internist.mup.rules import OPTIMIZERS, PARAMETRIZATIONS
from internist.mup.scale_table import ScaleTable, scale, size_of

USAGE = 2


def command(argv: list[str]) -> int:
    """Scale hyperparameters from one size of model to another by the muP rules."""
    arguments = _parser().parse_args(argv)
    try:
        table = _table(arguments)
    except ValueError as error:
        print(f"internist mup {arguments.what}: {error}", file=sys.stderr)
        return USAGE
    print({"text": table.text, "json": table.json, "yaml": table.yaml}[arguments.format]())
    return 0


def _table(arguments: argparse.Namespace) -> ScaleTable:
    names = ("lr", "adamw_lr", "weight_decay", "eps", "init_std")
    given = {name: value for name in names if (value := getattr(arguments, name)) is not None}
    return scale(
        given,
        from_=size_of(arguments.from_),
        to=size_of(arguments.to),
        optimizer=arguments.optimizer,
        parametrization=arguments.parametrization,
        branch_depth=arguments.branch_depth,
        others=arguments.others,
    )


def _parser() -> argparse.ArgumentParser:
    codes = "exit code: 0; 2 wrong arguments"
    description = (command.__doc__ or "").partition("\n")[0]
    parser = argparse.ArgumentParser(prog="internist mup", description=description, epilog=codes)
    what = parser.add_subparsers(dest="what", required=True, metavar="plan")
    plan = what.add_parser(
        "plan", help="a table of hyperparameters", description="Hyperparameters of every role.", epilog=codes
    )
    plan.add_argument("--from", dest="from_", required=True, metavar="WIDTHxDEPTH", help="size they are for: 256x4")
    plan.add_argument("--to", required=True, metavar="WIDTHxDEPTH", help="size that is wanted: 4096x32")
    plan.add_argument("--optimizer", default="adamw", metavar="NAME", help=f"{', '.join(OPTIMIZERS)} (default: adamw)")
    plan.add_argument("--lr", type=float, help="learning rate at the first size")
    plan.add_argument("--adamw-lr", type=float, help="that of what a matrix optimizer leaves to AdamW (default: --lr)")
    plan.add_argument("--weight-decay", type=float, help="decoupled decay at the first size")
    plan.add_argument("--eps", type=float, help="AdamW's eps at the first size")
    plan.add_argument("--init-std", type=float, help="standard deviation of the weights at the first size")
    plan.add_argument(
        "--branch-depth", type=int, default=2, metavar="K",
        help="transformations in a residual branch: 1, or 2 for two and more (default: 2)",
    )  # fmt: skip
    plan.add_argument("--parametrization", choices=PARAMETRIZATIONS, default="mup", help="default: mup")
    plan.add_argument(
        "--others", choices=("adamw", "own"), default="adamw",
        help="who steps embeddings and head beside a matrix optimizer (default: adamw)",
    )  # fmt: skip
    plan.add_argument("--format", choices=("text", "json", "yaml"), default="text", help="default: text")
    return parser
