"""Training: the loop on Lightning Fabric. ``options`` needs no torch; everything else does."""
