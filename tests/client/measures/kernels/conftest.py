"""Triton decides once, when it is imported, whether kernels are compiled or interpreted: these tests have a process of
their own, which tests/client/measures/test_kernels.py starts."""

import os

collect_ignore_glob = [] if os.environ.get("TRITON_INTERPRET") == "1" else ["test_*.py"]
