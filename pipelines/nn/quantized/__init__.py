"""Weights of linear layers in few bits: from checkpoint tensors to kernels, one family a file."""
