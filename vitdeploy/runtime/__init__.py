"""Running an artifact on images, as an application does: no torch, no graph library, nothing but its runtime."""
