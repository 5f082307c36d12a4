"""Layouts: how each dialect names its tensors, as rules that turn its keys into ours."""
