"""The packages of the distribution; pyproject.toml, where all else stands, cannot list found and named ones."""

from setuptools import find_namespace_packages, find_packages, setup

FLOORS = {"impart_flows": "flows", "impart_tasks": "tasks"}

setup(
    packages=[
        # lm-eval loads its tasks from a plain folder, hence the namespaces.
        *find_namespace_packages(include=["impart_core", "impart_core.*"]),
        *(
            name
            for package, folder in FLOORS.items()
            for name in [package, *(f"{package}.{inner}" for inner in find_packages(folder))]
        ),
    ]
)
