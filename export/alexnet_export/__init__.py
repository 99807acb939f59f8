"""Train an AlexNet, export it to ONNX, prove the export and publish it into a Triton model repository."""
