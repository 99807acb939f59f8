"""Train an AlexNet, export it to ONNX, validate it and publish it to a Triton model repository."""
