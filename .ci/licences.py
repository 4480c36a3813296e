"""Under which licences users install what stands beside Internist: a line each; exit code 1 where one is not known.

python .ci/licences.py            what the extras for users bring, as it is installed here
"""

import re
import sys
from collections.abc import Iterator
from importlib.metadata import Distribution, PackageNotFoundError, distribution

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

EXTRAS = ("server", "postgres", "cli", "mup", "frames", "otel")
"""What is installed by itself. torch, and the tools that a team keeps (tensorboard, wandb), are there before us."""

KNOWN = {
    "0BSD", "Apache-2.0", "BSD-2-Clause", "BSD-3-Clause", "CC0-1.0", "ISC", "MIT", "MIT-0", "PSF-2.0", "Unlicense",
    "Zlib", "MPL-2.0", "LGPL-3.0-only",
}  # fmt: skip
"""Each may be installed beside Apache-2.0. The last two ask that changes to the library itself be shared."""
WORDS = {
    "Apache License 2.0": "Apache-2.0", "Apache 2.0": "Apache-2.0", "Apache Software License": "Apache-2.0",
    "BSD": "BSD-3-Clause", "BSD License": "BSD-3-Clause", "BSD 3-Clause": "BSD-3-Clause", "MIT License": "MIT",
    "GNU Lesser General Public License v3 (LGPLv3)": "LGPL-3.0-only", "3-Clause BSD License": "BSD-3-Clause",
    "Mozilla Public License 2.0 (MPL 2.0)": "MPL-2.0", "ISC License (ISCL)": "ISC",
}  # fmt: skip
"""What older metadata call a licence."""
_CLASSIFIER = "License :: OSI Approved :: "


def main() -> int:
    """Print the table."""
    unknown = 0
    for found in sorted(installed("internist", EXTRAS), key=lambda one: canonicalize_name(one.name)):
        licence = licence_of(found)
        is_known = set(re.findall(r"[\w.+-]+", licence)) - {"AND", "OR", "WITH"} <= KNOWN
        unknown += not (licence and is_known)
        print(
            f"{found.name} {found.version}: {licence or 'says none'}{'' if licence and is_known else '  <- look at it'}"
        )
    return 1 if unknown else 0


def installed(name: str, extras: tuple[str, ...]) -> Iterator[Distribution]:
    """What a distribution brings with its extras, each once, without itself."""
    waiting, seen = [(name, extras)], {canonicalize_name(name)}
    while waiting:
        holder, wanted = waiting.pop()
        for line in distribution(holder).requires or ():
            requirement = Requirement(line)
            key = canonicalize_name(requirement.name)
            applies = requirement.marker is None or any(
                requirement.marker.evaluate({"extra": extra}) for extra in ("", *wanted)
            )
            if not applies or key in seen:
                continue
            try:
                found = distribution(key)
            except PackageNotFoundError:
                continue  # for another system, or another version of Python
            seen.add(key)
            waiting.append((key, tuple(requirement.extras)))
            yield found


def licence_of(found: Distribution) -> str:
    """An SPDX expression, or what the metadata say in its place; empty where they say none."""
    told = found.metadata
    if expression := told.get("License-Expression"):
        return expression
    classified = [
        one.removeprefix(_CLASSIFIER) for one in told.get_all("Classifier", []) if one.startswith(_CLASSIFIER)
    ]
    names = classified or [(told.get("License") or "").partition("\n")[0].strip()]
    return " AND ".join(WORDS.get(one, one) for one in names if one)


if __name__ == "__main__":
    sys.exit(main())
