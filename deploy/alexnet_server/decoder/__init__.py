"""Python-based backend ``image_decoder``: decodes and preprocesses image files.

``model`` is imported only in Triton's Python stub process.
"""
