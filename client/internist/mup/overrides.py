"""What is said of a model's parts where its module tree does not tell: roles by regular expression."""

import re
from collections.abc import Mapping, Sequence
from difflib import get_close_matches

from torch import nn

from internist.model.roles import plain_name

PARAMETER_ROLES = ("input", "hidden", "output", "gain", "bias", "router")
MODULE_ROLES = ("block", "branch")
ALIASES = {"embedding": "input", "head": "output"}


def said_roles(roles: Mapping[str, str], tree: Sequence[tuple[str, nn.Module]], root: nn.Module) -> dict[str, str]:
    """Name of a parameter or module to the role that is said of it.

    Args:
        roles: regular expression that matches the whole of a name, to a role.
        tree: names and modules of the model.
        root: the model.

    Raises:
        ValueError: an unknown role, an expression that is invalid or matches nothing, two that disagree.
    """
    parameters = [plain_name(name) for name, _ in root.named_parameters(remove_duplicate=False)]
    modules = [name for name, _ in tree if name]
    found: dict[str, str] = {}
    for pattern, wanted in roles.items():
        role = ALIASES.get(wanted, wanted)
        if role not in PARAMETER_ROLES + MODULE_ROLES:
            known = (*PARAMETER_ROLES, *ALIASES, *MODULE_ROLES)
            near = get_close_matches(str(wanted), known, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ValueError(f"roles: expected a role of {', '.join(known)}, got {wanted!r}{hint}")
        try:
            expression = re.compile(pattern)
        except re.error as error:
            raise ValueError(f"roles: {pattern!r} is not a valid regular expression: {error}") from error
        names = modules if role in MODULE_ROLES else [*parameters, *modules]
        matches = [name for name in names if expression.fullmatch(name)]
        if not matches:
            near = get_close_matches(pattern.replace("\\", ""), names, n=3, cutoff=0.3)
            what = "module" if role in MODULE_ROLES else "parameter or module"
            raise ValueError(f"roles: {pattern!r} matches no {what}'s whole name; near are {', '.join(near) or 'none'}")
        for name in matches:
            if found.get(name, role) != role:
                raise ValueError(f"roles: {name!r} is matched twice, as {found[name]!r} and {role!r}")
            found[name] = role
    return found
