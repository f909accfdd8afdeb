"""Puts `configs/` into the package as `transfusion.configs`; everything else is in pyproject.toml.

In a checkout the configs lie beside the package, where people look for them, and in a wheel inside of it, where
`transfusion.config.named` finds them. This mapping is what pyproject.toml cannot say for a package that is found.
"""

import setuptools

setuptools.setup(
    packages=[*setuptools.find_packages(include=["transfusion*"]), "transfusion.configs"],
    package_dir={"transfusion.configs": "configs"},
    # The small trained run that `transfusion demo` shows lies in packaged/.
    package_data={"transfusion": ["py.typed", "packaged/**/*"], "transfusion.configs": ["*.md"]},
)
