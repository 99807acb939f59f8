"""Open-loop load tester for image classifiers on NVIDIA Triton, through ``alexnet_client``."""
