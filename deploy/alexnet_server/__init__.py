"""Start and supervise the Triton Inference Server from the nvidia-pytriton wheel on this machine."""
