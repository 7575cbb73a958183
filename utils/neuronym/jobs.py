"""What is wanted of a network's passes, and which wants one forward pass serves.

Job        arrays that one network gives for one probe: where they are cached and what is read of a pass
groups_of  jobs that one forward pass serves
rounds_of  groups that may pass beside each other
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import nn, Tensor

from neuronym import cache
from neuronym.common.types import Device


@dataclass
class Job:
    """Arrays that one network gives for one probe: where they are cached and how they are read from its
    forward pass, which jobs of one module, preprocessing and dtype share.
    """

    kind: str
    who: str
    preprocess: Callable
    preprocess_spec: str
    specs: dict[str, dict]
    widths: dict[str, int]
    module: nn.Module | None  # whose forward pass is read; None shares with nobody
    # (names, how many images are in the pass) -> context manager of a function of what the module, or `run`,
    # gave: {name: [b, width]}
    taker: Callable
    info: dict
    run: Callable[[Tensor], object] | None = (
        None  # what makes the module pass, where more comes behind it ...
    )
    model: nn.Module | None = None  # ... and the network around both
    device: Device = None  # where it has to run; None is where a pass is asked for
    dtype: str = "float32"
    placed: dict = field(default_factory=dict)  # how `inference` is to place its images
    check: Callable[[Tensor], None] = lambda block: None  # refuses values that cannot be right
    writers: dict = field(default_factory=dict)
    starts: dict[str, int] = field(default_factory=dict)

    def missing(self) -> list[str]:
        """Names of the arrays that the cache does not have."""
        return [name for name, spec in self.specs.items() if cache.load(self.kind, spec) is None]

    def result(self, name: str) -> Tensor:
        """A cached array as a tensor over its file."""
        found = cache.load(self.kind, self.specs[name])
        # mode "c": what a caller writes stays in memory; torch warns of tensors over arrays that cannot be
        # written
        private = np.memmap(found.filename, found.dtype, "c", found.offset, found.shape)
        return torch.from_numpy(np.asarray(private))


def groups_of(jobs: list[Job]) -> list[list[Job]]:
    """Jobs that one forward pass serves; before the others that which runs more than their module."""
    groups: dict[tuple, list[Job]] = {}
    for job in jobs:
        shared = id(job if job.module is None else job.module)
        groups.setdefault((shared, job.preprocess_spec, job.dtype), []).append(job)
    return [sorted(group, key=lambda job: job.run is None) for group in groups.values()]


def rounds_of(groups: list[list[Job]]) -> list[list[list[Job]]]:
    """The groups in as few lists as keep apart what has a module in common, whose hooks would meet."""
    rounds: list[list[list[Job]]] = []
    for group in groups:
        own = set(group[0].module.modules()) if group[0].module is not None else set()
        free = (
            some
            for some in rounds
            if not any(other[0].module is not None and own & {*other[0].module.modules()} for other in some)
        )
        found = next(free, None)
        if found is None:
            rounds.append([group])
        else:
            found.append(group)
    return rounds
