"""Comparisons with PyTorch originals; a package, so that files here may share a name with those of other folders."""
