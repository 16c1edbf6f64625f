"""The 4-bit float formats: e2m1 numbers, two to a byte, in groups with a scale.

e2m1 and e8m0: OCP Microscaling Formats (MX) v1.0,
https://www.opencompute.org/documents/ocp-microscaling-formats-mx-v1-0-spec-final-pdf.
NVFP4 as NVIDIA ModelOpt stores it (weight, weight_scale, weight_scale_2).
"""

E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0)
"""The value of each 4-bit code."""
MXFP4_GROUP = 32
NVFP4_GROUP = 16
"""Numbers along K with the same scale."""
