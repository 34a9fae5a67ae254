"""Encoders as ONNX graphs: made once where PyTorch is, served where it is not.

A module per kind (``open_clip_source``, ``transformers_source``, ``sentence_source``) reads an
encoder into ``halves``: what its ``towers`` compute, as plain arrays, and what they make of
``samples``. ``graphs`` writes a tower as ONNX in one precision, with what ``quantising`` and
``outliers`` make of its matrices; ``exporting`` measures the result before it writes the folder.
``checking`` compares an exported encoder with the one that an artifact was trained with, on a
user's samples.

Importing this package loads none of them.
"""
