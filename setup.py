"""Install ./server, ./pipelines, ./kernels and ./config as quire.server, quire.pipelines, ...

setuptools' discovery has no option for a package prefix, and its extensions in pyproject.toml are
experimental; everything else is in pyproject.toml.
"""

from glob import glob

from setuptools import Extension, find_packages, setup

TOP = ["server", "pipelines", "kernels", "config"]
NATIVE = Extension(
    "quire.kernels.native._kernels",
    sources=sorted(glob("kernels/native/*.cpp")),
    depends=sorted(glob("kernels/native/*.h")),
    language="c++",
    extra_compile_args=[
        "-std=c++17",
        "-O3",
        "-g0",
        # Contraction depends on how the compiler inlines; results must not.
        "-ffp-contract=off",
        # The same memory holds float32, or pairs of bfloat16.
        "-fno-strict-aliasing",
        "-pthread",
        "-fvisibility=hidden",
        # GCC 12 reports its own AVX-512 header.
        "-Wno-maybe-uninitialized",
    ],
    extra_link_args=["-pthread"],
    # Without a compiler Quire installs all the same, and computes with torch.
    optional=True,
)
setup(
    packages=[f"quire.{name}" for top in TOP for name in find_packages(include=[top, f"{top}.*"])],
    package_dir={f"quire.{top}": top for top in TOP},
    ext_modules=[NATIVE],
)
