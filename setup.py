"""Puts `configs/` into the package as `transfusion.configs`, and a trained run; all else is in pyproject.toml.

In a checkout the configs lie beside the package, where people look for them, and in a wheel inside of it, where
`transfusion.config.named` finds them. This mapping is what pyproject.toml cannot say for a package that is found.
"""

import setuptools

RUN = "transfusion.packaged.digits"  # a trained run; the folders hold no code
setuptools.setup(
    packages=[*setuptools.find_packages(include=["transfusion*"]), "transfusion.configs", RUN, f"{RUN}.pictures"],
    package_dir={"transfusion.configs": "configs"},
    package_data={
        "transfusion": ["py.typed"],
        "transfusion.configs": ["*.md"],
        RUN: ["*.md", "*.json", "*.safetensors"],
        f"{RUN}.pictures": ["*.png"],
    },
)
