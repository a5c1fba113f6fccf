"""Libraries that come with an extra of this package: where one is missing, the error names the extra."""

from collections.abc import Iterator
from contextlib import contextmanager

OF_PROTOCOLS = {"http": "http", "https": "http", "s3": "s3", "s3a": "s3", "gs": "gcs", "gcs": "gcs"}


def extra_of_url(url: str) -> str:
    """Return the extra with what a URL needs, which may be chained: of most file systems, that is fsspec alone."""
    protocols = [part.partition("://")[0] for part in url.split("::")]
    return next((OF_PROTOCOLS[protocol] for protocol in protocols if protocol in OF_PROTOCOLS), "fsspec")


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
        library = (missing.name or "a library").partition(".")[0]
        reason = f"{purpose} needs {library}: pip install 'pagecache-engine[{extra}]' ({missing})"
        raise ImportError(reason, name=missing.name) from missing
