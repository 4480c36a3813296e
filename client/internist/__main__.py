"""`python -m internist`: the `internist` command where its script is not on the path."""

import sys

from internist.commands.cli import main

sys.exit(main())
