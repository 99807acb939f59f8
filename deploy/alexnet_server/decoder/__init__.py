"""The Python-based ``image_decoder`` backend: image files in, the model's pixels out.

``model`` is imported by Triton's Python stub alone.
"""
