"""What other packages add: modules under the entry points ``vitdeploy.families`` and ``vitdeploy.backends``.

A module is imported when its group is first needed and registers what it brings (``register_family``,
``register_backend``); importing it by hand does the same.
"""

from __future__ import annotations

import functools
import importlib.metadata
import warnings


@functools.cache
def load_plugins(group: str) -> tuple[str, ...]:
    """Import the modules that installed packages name under an entry point, once; return their names.

    A module that cannot be imported is a warning that names it and its package: the rest of vitdeploy works without.
    """
    loaded = []
    for entry in importlib.metadata.entry_points(group=group):
        try:
            entry.load()
        except Exception as error:
            package = entry.dist.name if entry.dist is not None else "unknown"
            warnings.warn(
                f"{entry.value} of package {package!r} (entry point {group}) cannot be imported: {error}", stacklevel=2
            )
        else:
            loaded.append(entry.name)
    return tuple(loaded)
