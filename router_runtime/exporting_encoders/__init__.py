"""Encoders as ONNX graphs: made once where PyTorch is, served where it is not.

``open_clip_towers`` reads a model into ``towers``, a plain description; ``graphs`` writes that as
ONNX in one precision, with what ``quantising`` makes of its matrices; ``probes`` are the texts and
pictures on which ``exporting`` measures the result before it writes the folder. ``checking``
compares an exported encoder with the one that an artifact was trained with, on a user's samples
(``check_samples``).

Importing this package loads none of them.
"""
