"""Looks at what is to be deployed before a cluster does: manifests, images, compose file. For ``make deploy-check``."""
