"""Checks that a --workdir can hold a run, before anything is computed."""

import os
import re
import stat

from transfusion.errors import UsageError, require
from transfusion.storage import is_bucket

# The scheme of a bucket that can hold checkpoints -> the module that it needs, and the extra that brings the module.
BUCKET_SCHEMES = {"gs": ("gcsfs", "gcs"), "s3": ("s3fs", "s3")}


def check_workdir(workdir: str) -> None:
    """Refuses a --workdir that is missing, that no file system could have, or a URL that nothing here can write.

    Raises:
      UsageError: saying which of these it is.
    """
    if not workdir:
        raise UsageError("--workdir is missing: a folder for checkpoints and metrics, for example runs/digits")
    if workdir.startswith("~"):  # some libraries would expand it, and others make a folder of that name
        raise UsageError(f"--workdir={workdir}: ~ is not expanded after '=': write $HOME, or a space for the '='")
    # Python shows a byte of an argument that is not UTF-8 as a surrogate, which the checkpoints' storage cannot write.
    if any(ord(letter) < 32 or 0xD800 <= ord(letter) < 0xE000 for letter in workdir):
        raise UsageError(f"--workdir={ascii(workdir)}: the name holds a control character, or is not UTF-8")
    # A URL with one slash after the colon was shortened as paths are, and would become a folder named 'gs:'.
    if url := re.match(r"([A-Za-z][A-Za-z0-9+.-]*):/", workdir):
        scheme = url[1]
        if scheme not in BUCKET_SCHEMES:
            known = " or ".join(f"{name}://BUCKET/FOLDER" for name in BUCKET_SCHEMES)
            raise UsageError(
                f"--workdir={workdir}: {scheme}:// is not supported for workdirs; {known} is: mount other storage as a "
                "folder"
            )
        if not re.match(rf"{scheme}://[A-Za-z0-9]", workdir):
            raise UsageError(f"--workdir={workdir} is not of the form {scheme}://BUCKET/FOLDER")
        require(*BUCKET_SCHEMES[scheme])


def check_folder(workdir: str | os.PathLike) -> None:
    """Refuses a workdir that is no folder, at once: a search for checkpoints would wait for storage to come back."""
    if is_bucket(workdir):
        return
    try:
        there = os.stat(workdir)
    except FileNotFoundError:
        return
    except OSError as error:
        raise UsageError(f"--workdir={workdir}: {error.strerror}") from error
    if not stat.S_ISDIR(there.st_mode):
        raise UsageError(f"--workdir={workdir} is no folder")
