"""Polynomials behind tanh and GELU, for float32.

Both are built from exp, products and sums alone: torch's CPU tanh and erf differ between vector
body and scalar tail, so an element's place would show in its value.
"""

TANH = (-5.70498872745e-3, 2.06390887954e-2, -5.37397155531e-2, 1.33314422036e-1, -3.33332819422e-1)
"""tanh(x) = x + x * x^2 * P(x^2) for |x| < TANH_SPLIT, highest power first (Cephes, tanhf)."""
TANH_SPLIT = 0.625

ERFC = (
    (0.17087277, -0.82215223, 1.48851587, -1.13520398, 0.27886807)
    + (-0.18628806, 0.09678418, 0.37409196, 1.00002368, -1.26551223)
)  # fmt: skip
"""erfc(x) = t * exp(P(t) - x^2), t = 1 / (1 + x / 2), x >= 0, relative error below 1.2e-7, highest
power first (Press et al., Numerical Recipes, section 6.2)."""

GELU_TANH = (2.0 * 0.7978845608028654, 0.044715)
"""2 * sqrt(2 / pi), and the factor of the cube."""
SQRT_HALF = 0.7071067811865476
