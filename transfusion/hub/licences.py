"""The licences of the data sets and weights that this package can prepare; the same table as in docs/licences.md."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Licence:
    """What data is, and under which terms."""

    data: str
    terms: str


# The first part of a TFDS data set's name -> its licence.
LICENCES = {
    "digits": Licence("UCI Optical Recognition of Handwritten Digits, as scikit-learn has them", "CC BY 4.0"),
    "omni_digits": Licence(
        "UCI Optical Recognition of Handwritten Digits, and English core sounds of Asterisk",
        "CC BY 4.0 and CC BY-SA 3.0",
    ),
    "emoji": Licence("Twemoji, (c) Twitter, Inc. and other contributors; names of the package emoji",
                     "CC BY 4.0; names BSD-3-Clause"),
    "text": Licence("documentation topics of the Python standard library", "PSF licence"),
    "speech": Licence("English core sounds of Asterisk", "CC BY-SA 3.0"),
    "animations": Licence("Fluent emoji, (c) Microsoft Corporation", "MIT"),
}  # fmt: skip
SCENES = Licence("shapes that this package draws itself", "no rights of others")
OWN = Licence("data of the one who published it", "not said; ask there")


def licence_of(kind: str, name: str) -> Licence:
    """The licence of a source of records, by its kind and name in the config."""
    if kind == "scenes":
        return SCENES
    return LICENCES.get(name.split("/")[0].split(":")[0], OWN) if kind == "tfds" else OWN
