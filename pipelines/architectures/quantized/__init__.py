"""Encodings of quantized linear layers, and how config.json announces them. No torch.

`pipelines/nn/quantized/` has for each the class that computes with it.
"""
