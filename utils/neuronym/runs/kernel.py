"""The process that runs a notebook: it checks what only networks can tell, says so, and becomes the kernel.

main       what the process does
ASKED, VERDICT   files through which the command asks and is answered
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import io
import json
import os
import sys
from pathlib import Path

from neuronym.runs.checks import check_networks, WRONG
from neuronym.runs.folders import notebook_path
from neuronym.runs.parameters import read_parameters

ASKED, VERDICT = "asked.json", "verdict"
BUFFERED = frozenset((io.TextIOWrapper, io.BufferedWriter, io.BufferedRandom))
RUBBISH = (
    50_000,
    10,
    10,
)  # objects between two looks for rubbish: at Python's 700 imports alone take a third longer


def main(folder: str, *options: str) -> None:
    """Check the notebook and parameters in `folder`, write what is wrong, or nothing, beside them, and run
    ipykernel with `options` if nothing is.
    """
    gc.disable()  # what is imported stays
    asked, said = json.loads((Path(folder) / ASKED).read_text(encoding="utf-8")), ""
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # the notebook will say it again
            check_networks(read_parameters(notebook_path(asked["notebook"])), asked["params"])
    except WRONG as error:
        said = str(error) or type(error).__name__
    part = Path(folder) / f"{VERDICT}.part"
    part.write_text(said, encoding="utf-8")
    os.replace(part, Path(folder) / VERDICT)
    if said:
        sys.exit(2)
    from ipykernel.kernelapp import launch_new_instance

    gc.freeze()  # looking through modules again and again takes a third of a second
    gc.set_threshold(*RUBBISH)
    gc.enable()
    atexit.register(_leave)  # before all others, so that it is called last
    launch_new_instance(list(options))
    gc.freeze()  # what else is left ends with the process
    atexit._run_exitfuncs()  # Python would first wait for the kernel's own threads


def _leave() -> None:
    """End the process once everything else has ended: taking its modules apart would take another second."""
    gc.unfreeze()
    for thing in gc.get_objects():
        if type(thing) in BUFFERED and not thing.closed:
            with contextlib.suppress(OSError, ValueError):
                thing.flush()
    os._exit(0)
