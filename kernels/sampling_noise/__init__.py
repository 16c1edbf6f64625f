"""The counter-based noise of `quire.kernels.sampling.noise` for Triton kernels, in `kernel`."""
