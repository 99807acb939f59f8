"""Start the Triton Inference Server that ships in the nvidia-pytriton wheel, safely, on this machine."""
