"""Where the C interface is installed."""

import os


def get_include() -> str:
    """Return the directory of `pagecache.h`, for the include path of modules that use the C interface (docs/c-api.md)."""
    return os.path.join(os.path.dirname(os.path.abspath(__file__)), "include")
