"""The commands of ``alexnet-export``."""
