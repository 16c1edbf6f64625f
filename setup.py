"""Install ./server, ./pipelines, ./kernels and ./config as quire.server, quire.pipelines, ...

setuptools' discovery has no option for a package prefix; everything else is in pyproject.toml.
"""

from setuptools import find_packages, setup

TOP = ["server", "pipelines", "kernels", "config"]
setup(
    packages=[f"quire.{name}" for top in TOP for name in find_packages(include=[top, f"{top}.*"])],
    package_dir={f"quire.{top}": top for top in TOP},
)
