"""`python -m neuronym`: the same as the command `neuronym`."""

import sys

from neuronym.runs.command import main

sys.exit(main())
