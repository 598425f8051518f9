"""What pyproject.toml cannot say: the configs beside the package are installed inside it."""

from setuptools import find_namespace_packages, setup

setup(
    packages=[*find_namespace_packages(include=["videomar_jax*"]), "videomar_jax.configs"],
    package_dir={"videomar_jax.configs": "configs"},
)
