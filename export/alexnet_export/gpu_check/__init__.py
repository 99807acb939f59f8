"""Every GPU path that a machine has, run once and held against what its hardware could do at most."""
