"""Libraries that come with an extra of this package: where one is missing, the error names the extra."""

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def needs(extra: str, purpose: str) -> Iterator[None]:
    """A context in which a library is imported.

    extra: of pagecache-engine, which installs it. purpose: what needs it, for the message.
    Raises ImportError, with what to install, in place of one that names a module only.
    """
    try:
        yield
    except ImportError as missing:
        if missing.name is not None and missing.name.partition(".")[0] == "pagecache":
            raise  # a part of this package: no extra would help
        reason = f"{purpose} needs {missing.name or 'a library'}: pip install 'pagecache-engine[{extra}]' ({missing})"
        raise ImportError(reason, name=missing.name) from missing
