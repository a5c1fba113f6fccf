"""mfusepy and the libfuse under it: which one, and what of it is used directly.

mfusepy takes libfuse 2 when both are installed, which cuts writes into 4 KiB and knows no flags of rename: version 3 is
chosen here, unless FUSE_LIBRARY_NAME or FUSE_LIBRARY_PATH say otherwise, or mfusepy has been imported already.
"""

import ctypes.util
import importlib
import os
import sys
from typing import Any

INSTALL = "pip install 'pagecache-engine[fuse]', and libfuse 3 (Debian: apt install fuse3)"


def load() -> Any:
    """Return the module mfusepy on libfuse 3. Raises ImportError, with what to install."""
    if "mfusepy" not in sys.modules and not {"FUSE_LIBRARY_NAME", "FUSE_LIBRARY_PATH"} & set(os.environ):
        if ctypes.util.find_library("fuse3") is None:
            raise ImportError(f"libfuse 3 is not installed: {INSTALL}")
        os.environ["FUSE_LIBRARY_NAME"] = "fuse3"
        try:
            return _import()
        finally:
            del os.environ["FUSE_LIBRARY_NAME"]
    return _import()


def _import() -> Any:
    try:
        mfusepy = importlib.import_module("mfusepy")
    except (ImportError, OSError) as error:
        raise ImportError(f"mounting needs mfusepy ({error}): {INSTALL}") from error
    if mfusepy.fuse_version_major < 3:
        raise ImportError(f"mounting needs libfuse 3, mfusepy has loaded version {mfusepy.fuse_version_major}: {INSTALL}")
    return mfusepy
