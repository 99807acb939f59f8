"""The Python-based backend that stands in for Triton's C++ ``onnxruntime`` backend under the same name.

Triton runs it inside its Python stub process. The same ``config.pbtxt`` serves both backends.
"""
