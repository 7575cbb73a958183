"""The second-order lens: what the MLP neurons of a CLIP write into its representation.

The room can be called: `from neuronym import second_order; second_order(clip, probe, words)` is
`neuronym.second_order.naming.second_order`, imported when it is called.
"""

import sys
from types import ModuleType


class _Room(ModuleType):
    """A package and the function of its name are one attribute of `neuronym`, whichever is imported first."""

    def __call__(self, *args, **options):
        from neuronym.second_order.naming import second_order

        return second_order(*args, **options)


sys.modules[__name__].__class__ = _Room
