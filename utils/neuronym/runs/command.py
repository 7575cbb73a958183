"""`neuronym NOTEBOOK -p key value ...`: run a notebook headless, as JupyterLab would.

Names, values and paths are checked before anything heavy is imported, and what only a network can tell before
any work. The executed notebook, its parameters, metrics, tables, figures and seconds by phase end in one
folder named by the parameters; what was computed before comes from the cache.

main      the command line
"""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Callable
from typing import Any

from neuronym.runs.checks import resolve, WRONG
from neuronym.runs.folders import notebook_path
from neuronym.runs.listing import notebooks, print_notebooks, print_runs
from neuronym.runs.parameters import read_parameters

MORE = """other commands:
  neuronym --list             the notebooks in the order to read them, with the question each asks
  neuronym NOTEBOOK --list    the parameters of one
  neuronym runs [NOTEBOOK]    the runs so far: when, state, what was set, folder
  neuronym layers TARGET      the layers of a network
  neuronym cache              what is stored, and what is wrong with it
  neuronym download [NAME]    weights and lists that others offer, such as places365
  neuronym sweep FILE         the runs of a YAML file, some at once; -n lists them
  neuronym collect PATTERN    parameters and metrics of many runs as one table
  neuronym shard 1-of-8 NOTEBOOK -p ...   one part of a run's passes over the images
  neuronym join 8 NOTEBOOK -p ...         the parts, made one
"""


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns the exit status: 0, 1 when a notebook failed, 2 when the command was wrong, 130
    or 143 when it was stopped by Ctrl-C or SIGTERM.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        if arguments[:1] and arguments[0] in COMMANDS:
            return _other(*arguments)
        if arguments[:1] and arguments[0] in SCALED and not _of_notebook(arguments):
            return SCALED[arguments[0]](*arguments[1:])
        options = _parser().parse_args(arguments)
        if options.list or not options.notebook:
            if options.notebook and options.notebook != "all":
                print("\n".join(map(str, read_parameters(notebook_path(options.notebook)).values())))
            else:
                print_notebooks()
                print("usage: neuronym NOTEBOOK -p key value ...   (neuronym --help: all commands)")
            return 0 if options.list else 2
        names = [name for name, *_ in notebooks()] if options.notebook == "all" else [options.notebook]
        planned = {name: resolve(name, options.values) for name in names}
    except WRONG as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped before any work", file=sys.stderr)
        return 128 + signal.SIGINT
    return _run(planned, options.force, options.notebook == "all")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="neuronym",
        description="Run a notebook of this repository.",
        epilog=MORE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("notebook", nargs="?", help="its name without .ipynb, or all")
    parser.add_argument(
        "-p",
        nargs=2,
        action="append",
        default=[],
        metavar=("KEY", "VALUE"),
        dest="values",
        help="set a parameter; may be repeated",
    )
    parser.add_argument("--list", action="store_true", help="list the notebooks, or the parameters of one")
    parser.add_argument("--force", action="store_true", help="empty the run folder first")
    return parser


def _run(planned: dict[str, tuple], force: bool, every: bool) -> int:
    """Run notebooks one after another, a table of them at the end if it is `every` one; the exit status."""
    from neuronym.runs.execute import execute

    rows = {}
    for name, (overrides, params) in planned.items():
        rows[name] = execute(name, overrides, params, force=force)
        if rows[name]["stopped"]:
            break
    if not every:
        return rows[name]["status"]
    print(f"\n{'notebook':<24}{'seconds':>9}{'peak MB':>10}")
    for name, row in rows.items():
        print(f"{name:<24}{row['seconds']:>9.1f}{row['peak_mb'] or '-':>10}  {row['error'] or 'done'}")
    return rows[name]["status"] if rows[name]["stopped"] else int(any(row["error"] for row in rows.values()))


def _other(command: str, *words: str) -> int:
    """One of COMMANDS, with the words that follow it."""
    function, usage, most = COMMANDS[command]
    if len(words) > most or any(word.startswith("-") for word in words):
        raise ValueError(f"neuronym {command} is written {usage}, got {' '.join((command, *words))}")
    function(*words)
    return 0


def _layers(target: str = "microworld:resnet") -> None:
    """The layers of a network with their kinds, units and shapes."""
    from neuronym.hooks import list_layers
    from neuronym.models.targets import load_target

    network = load_target(target, suggest=False)
    for layer in list_layers(network.model, network.example):
        print(f"{layer.name:<40} {layer.kind:<24} {layer.units:>6}  {str(layer.shape):<18} {layer.layout}")


def _cache() -> None:
    """What is stored, and what is wrong with it."""
    from neuronym.cache import entries, verify

    for entry in entries():
        print(f"{entry['kind']:<18} {entry['key']}  {entry['bytes'] / 1e6:>9.1f} MB  {entry['info']}")
    print("\n".join(verify()) or "every entry is as it was written")


def _download(name: str = "", sha256: str = "") -> None:
    """Weights and lists that others offer: what there is, or those of a name."""
    from neuronym.models.downloads import download

    download(name, sha256)


def _of_notebook(arguments: list[str]) -> bool:
    """Whether `neuronym sweep ...` is the notebook of that name, and not the runs of a file."""
    return arguments[0] == "sweep" and arguments[1:2] in ([], ["-p"], ["--list"], ["--force"])


def _sweep(*words: str) -> int:
    """The rows of a sweep file."""
    from neuronym.runs.scheduler import sweep

    return sweep(*words)


def _collect(*words: str) -> int:
    """Many runs as one table."""
    from neuronym.runs.collect import collect_command

    return collect_command(*words)


def _shard(part: str = "", *words: str) -> int:
    """One part of a run's passes."""
    from neuronym.shards import check_part, compute_shard

    return _of_a_run(words, lambda notebook, params: compute_shard(notebook, params, *check_part(part)))


def _join(count: str = "", *words: str) -> int:
    """The parts of a run's passes, made one."""
    from neuronym.shards import check_count, join_shards

    return _of_a_run(words, lambda notebook, params: join_shards(notebook, params, check_count(count)))


def _of_a_run(words: tuple[str, ...], work: Callable[[str, dict[str, Any]], None]) -> int:
    """What is done for the run that `NOTEBOOK -p key value ...` describes."""
    options = _parser().parse_args(list(words))
    if not options.notebook:
        raise ValueError("which run? neuronym shard 1-of-8 labelling -p key value ...")
    work(options.notebook, resolve(options.notebook, options.values)[1])
    return 0


SCALED = {"sweep": _sweep, "collect": _collect, "shard": _shard, "join": _join}
COMMANDS = {
    "runs": (print_runs, "neuronym runs [NOTEBOOK]", 1),
    "layers": (_layers, "neuronym layers TARGET", 1),
    "cache": (_cache, "neuronym cache", 0),
    "download": (_download, "neuronym download [NAME [SHA256]]", 2),
}
