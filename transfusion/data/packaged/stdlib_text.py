"""The Python language reference as a TFDS data set of short texts."""

import hashlib
from collections.abc import Iterator

import tensorflow_datasets as tfds

from transfusion.data import text_records
from transfusion.data.packaged.base import PackagedBuilder

_TEXT_BYTES = 512
_TEXT_TEST_SHARE = 0.1


class StdlibText(PackagedBuilder):
    """The Python language reference that ships with Python (`pydoc_data.topics`), in records of about a paragraph.

    About 465,000 characters; the exact text depends on the version of Python. A tenth, chosen by hash, is split 'test'.
    """

    VERSION = tfds.core.Version("1.0.0")

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description="Python's language reference (Python Software Foundation License).",
            features=tfds.features.FeaturesDict({"text": tfds.features.Text(), "topic": tfds.features.Text()}),
        )

    def _split_generators(self, dl_manager) -> dict[str, Iterator]:
        return {"train": self._generate_examples(False), "test": self._generate_examples(True)}

    def _generate_examples(self, test: bool) -> Iterator[tuple[str, dict]]:
        from pydoc_data.topics import topics

        seen = set()
        for topic, text in sorted(topics.items()):
            data = text.strip().encode()
            for start, stop in text_records.spans(data, _TEXT_BYTES):
                record = data[start:stop].strip()
                digest = hashlib.sha256(record).digest()
                if not record or digest in seen:  # some topics repeat each other's text
                    continue
                seen.add(digest)
                if (int.from_bytes(digest[:8], "big") / 2**64 < _TEXT_TEST_SHARE) == test:
                    yield f"{topic}:{start}", {"text": record.decode(), "topic": topic}
