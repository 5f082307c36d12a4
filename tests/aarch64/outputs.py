"""Write what graphs compute of images: ``outputs.py IMAGES OUTPUT.npz GRAPH...``; runs on either machine."""

from __future__ import annotations

import sys

import numpy as np

import vitdeploy as vd

images, output, *graphs = sys.argv[1:]
found = {}
for graph in graphs:
    with vd.load(graph) as model:
        found[graph] = model.outputs(images)
np.savez(output, **found)  # type: ignore[arg-type] # the stubs take a name for the option allow_pickle
