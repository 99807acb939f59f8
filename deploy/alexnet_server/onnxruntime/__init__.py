"""Python-based backend ``onnxruntime``, a replacement for Triton's C++ backend of the same name.

Triton runs it in its Python stub process. The same ``config.pbtxt`` works with both backends.
"""
