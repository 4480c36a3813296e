"""A process that has had a device without memory keeps it: these tests have one of their own, which
tests/client/observe/test_accelerator.py starts."""

import os

collect_ignore_glob = [] if os.environ.get("INTERNIST_TEST_ACCELERATOR") == "1" else ["test_*.py"]
