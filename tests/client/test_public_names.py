"""Public names that load on first use are the same objects whatever was imported before them."""

import json
import pkgutil
import subprocess
import sys
from importlib import import_module

import pytest

PACKAGES = ("internist", "internist.mup", "internist.optim")
"""Those with public names of their own."""

SECONDS = 120
"""For a new interpreter to import all of the client, on a busy machine."""

DESCRIBE = """
import importlib, json, pkgutil, sys, warnings

warnings.simplefilter("ignore")
package = importlib.import_module(sys.argv[1])
first = [getattr(package, name) for name in package.__all__] if sys.argv[2] == "names first" else None
for module in pkgutil.iter_modules(package.__path__, package.__name__ + "."):
    if not module.name.endswith("__main__"):
        importlib.import_module(module.name)
last = [getattr(package, name) for name in package.__all__]
homes = [getattr(importlib.import_module(package._HOMES[name]), name) for name in package.__all__]
pairs = zip(package.__all__, first or last, last, homes)
print(json.dumps([name for name, *found in pairs if len(set(map(id, found))) > 1]))
"""


@pytest.mark.parametrize("package", PACKAGES)
def test_no_public_name_is_that_of_a_module_beside_it(package):
    found = import_module(package)
    modules = {module.name for module in pkgutil.iter_modules(found.__path__)}

    assert set(found.__all__) == set(found._HOMES)
    assert not modules & set(found.__all__)


@pytest.mark.parametrize("order", ["names first", "modules first"])
@pytest.mark.parametrize("package", PACKAGES)
def test_the_order_of_imports_never_changes_what_a_name_is(package, order):
    done = subprocess.run(
        [sys.executable, "-c", DESCRIBE, package, order], capture_output=True, text=True, timeout=SECONDS, check=False
    )

    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == []


def test_the_function_comes_by_a_plain_import():
    from internist.optim import orthogonalize

    assert callable(orthogonalize)
    assert orthogonalize.__module__ == "internist.optim.coefficients"
