"""The commands of ``alexnet-export``, a module each; with ``terminal`` the only ones that print."""
