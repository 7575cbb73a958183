"""`python -m neuronym`: the same as the command `neuronym`, whatever modules the current folder holds."""

import os
import sys

if sys.path[0] in ("", os.getcwd()) and not os.path.isdir("neuronym"):
    del sys.path[0]  # `python -m` would take a yaml.py or models.py there for another

from neuronym.runs.command import main

sys.exit(main())
