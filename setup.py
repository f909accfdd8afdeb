"""What pyproject.toml cannot say: where the configs lie in the package, and a README whose links lead to the sources.

In a checkout the configs lie beside the package, where people look for them, and in a wheel inside of it, where
`transfusion.config.named` finds them.
"""

import pathlib
import re

import setuptools

SOURCES = "https://github.com/transfusion-jax/transfusion"


def readme() -> str:
    """README.md, whose links are relative to a checkout, for readers without one."""
    text = pathlib.Path(__file__).with_name("README.md").read_text(encoding="utf-8")
    text = re.sub(r"(!\[[^\]]*\]\(|<img[^>]* src=\")(?!https?:)", rf"\1{SOURCES}/raw/main/", text)
    return re.sub(r"((?<!!)\[[^\[\]]*\]\()(?!https?:|#)", rf"\1{SOURCES}/blob/main/", text)


setuptools.setup(
    long_description=readme(),
    long_description_content_type="text/markdown",
    packages=[*setuptools.find_packages(include=["transfusion*"]), "transfusion.configs"],
    package_dir={"transfusion.configs": "configs"},
    # The small trained run that `transfusion demo` shows lies in packaged/.
    package_data={"transfusion": ["py.typed", "packaged/**/*"], "transfusion.configs": ["*.md", "*.json"]},
)
