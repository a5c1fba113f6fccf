"""An HTTP server whose faults are chosen by name, for which request, and how often; well again afterwards.

    with FaultyServer() as server:
        url = server.put("object", data)
        server.fail("cut in body", when="range")        # the next request for a range breaks off half way
        ...                                             # what uncached raises is raised, and no data is returned
        server.heal()                                   # forget faults that have not struck, be there again
        assert read(url) == server.data("object")       # "changed" has replaced the object by another one

`MATRIX` has all pairs of a fault and a request. Manners are for good: `server.rewrite = manners(refuses_head(403), ...)`.
"""

import gzip
import threading
from collections.abc import Callable
from typing import Any, NamedTuple

from support.http_server import Answer, ObjectServer

STATUSES = ("503", "429", "403", "404", "500")
FAULTS = (*STATUSES, "cut in headers", "cut in body", "too short", "too long", "stopped", "changed")
WHEN = ("first", "size", "range")
MATRIX = [(fault, when) for fault in FAULTS for when in WHEN]

Manner = Callable[[Answer], None]


class Fault(NamedTuple):
    """A fault that waits for its request."""

    name: str
    strikes: Callable[[Answer], bool]


class FaultyServer(ObjectServer):
    """An `ObjectServer` with faults. struck: the names of those that have happened, in order."""

    def __init__(self, **options: Any):
        self.struck: list[str] = []
        self._faults: list[Fault] = []
        self._faults_lock = threading.Lock()
        super().__init__(**options)

    def fail(
        self,
        fault: str,
        when: str | Callable[[Answer], bool] = "first",
        *,
        times: int = 1,
        path: str = "",
    ) -> None:
        """Have the next requests of a kind go wrong, each in one way: the first one chosen goes first.

        fault: one of FAULTS. when: one of WHEN ("size": the next HEAD; "range": the next GET with a range), or whether a
        request is meant. times: requests. path: what the path of the request has to contain.
        """
        if fault not in FAULTS:
            raise ValueError(f"no fault is named {fault!r}: there are {', '.join(FAULTS)}")
        is_meant = {
            "first": lambda answer: True,
            "size": lambda answer: answer.is_size_request,
            "range": lambda answer: answer.is_range_request,
        }.get(when, when)  # type: ignore[arg-type]
        assert callable(is_meant), f"a request is one of {WHEN}, not {when!r}"
        with self._faults_lock:
            self._faults += [Fault(fault, lambda answer: path in answer.path and is_meant(answer))] * times

    def heal(self) -> None:
        """Forget the faults that have not happened, and serve again if stopped."""
        with self._faults_lock:
            self._faults = []
        self.start()

    def data(self, name: str) -> bytes:
        """Return the bytes that an object has now."""
        found = self.find(f"/{name}")
        assert found is not None, f"there is no object {name!r}"
        return found[0]

    def alter(self, answer: Answer) -> None:
        """Make the fault of an answer, if one waits for its request, after the manners."""
        with self._faults_lock:
            fault = next((fault for fault in self._faults if fault.strikes(answer)), None)
            if fault is not None:
                self._faults.remove(fault)
                self.struck.append(fault.name)
        super().alter(answer)
        if fault is not None:
            self._make(fault.name, answer)

    def _make(self, fault: str, answer: Answer) -> None:
        if fault in STATUSES:
            answer.status, answer.headers, answer.body = int(fault), {"Retry-After": "0"}, b"no such luck"
        elif fault in ("cut in headers", "cut in body"):
            answer.cut = fault.rpartition(" ")[2]
        elif fault == "too short":
            answer.body = answer.body[: len(answer.body) // 2]
        elif fault == "too long":
            answer.body += b"too long" * (1 + len(answer.body) // 16)
        elif fault == "stopped":
            answer.cut = "headers"
            self.stop()
        elif fault == "changed":
            name = answer.path.partition("?")[0].lstrip("/")
            self.put(name, changed(self.data(name)))
            self.answer_again(answer)


def changed(data: bytes) -> bytes:
    """Return what "changed" puts in the place of these bytes: as many, and each another one."""
    return data.translate(bytes(byte ^ 0xFF for byte in range(256)))


# -- manners: what a server always does --------------------------------------------------------------------------------


def manners(*all_of: Manner) -> Manner:
    """Return the manner that is several, in order."""

    def together(answer: Answer) -> None:
        for manner in all_of:
            manner(answer)

    return together


def refuses_head(status: int | None) -> Manner:
    """HEAD gets this status, as where a URL is signed for GET; None: the connection is cut."""

    def manner(answer: Answer) -> None:
        if answer.method == "HEAD" and answer.status < 400:
            answer.headers, answer.body = {}, b""
            answer.status, answer.cut = (status, None) if status else (200, "headers")

    return manner


def head_says_nothing(length: int | None = None) -> Manner:
    """HEAD names no length, or this one, whatever there is."""

    def manner(answer: Answer) -> None:
        if answer.method == "HEAD" and answer.status < 400:
            answer.has_length = False
            if length is not None:
                answer.has_length, answer.body = True, bytes(length)

    return manner


def states_no_length(answer: Answer) -> None:
    """Nothing says how large the object is, but an answer without a body that says so; bodies go in chunks."""
    answer.has_length = False
    if "Content-Range" in answer.headers and answer.status == 206:
        answer.headers["Content-Range"] = answer.headers["Content-Range"].rpartition("/")[0] + "/*"


def head_and_get(head: dict[str, str], get: dict[str, str]) -> Manner:
    """HEAD has these headers, GET those; an empty value takes a header away."""

    def manner(answer: Answer) -> None:
        answer.headers |= head if answer.method == "HEAD" else get
        answer.headers = {name: value for name, value in answer.headers.items() if value}

    return manner


def content_range(form: str) -> Manner:
    """Write the Content-Range of a part as this says: "Bytes {first}-{last}/{size}"."""

    def manner(answer: Answer) -> None:
        if answer.status == 206:
            span, _, size = answer.headers["Content-Range"].removeprefix("bytes ").partition("/")
            first, _, last = span.partition("-")
            answer.headers["Content-Range"] = form.format(first=first, last=last, size=size)

    return manner


def begins_earlier(nbytes: int) -> Manner:
    """A part begins up to so many bytes before what was asked for, and ends as many behind it."""

    def manner(answer: Answer) -> None:
        if answer.status == 206 and answer.span is not None and answer.data is not None:
            first = max(0, answer.span[0] - nbytes)
            end = min(len(answer.data), first + len(answer.body) + 2 * nbytes)
            answer.body = answer.data[first:end]
            answer.headers["Content-Range"] = f"bytes {first}-{end - 1}/{len(answer.data)}"

    return manner


def stored_as_gzip(answer: Answer) -> None:
    """As Google's storage serves an object that was stored compressed: HEAD states the length that is stored; GET sends all
    of it, compressed if the client takes that, else as it was before."""
    if answer.data is None or answer.status >= 400:
        return
    stored = gzip.compress(answer.data, mtime=0)
    takes_gzip = "gzip" in answer.asked.get("Accept-Encoding", "")
    answer.status = 200
    answer.headers.pop("Content-Range", None)
    answer.headers |= {"Accept-Ranges": "none", "x-goog-stored-content-encoding": "gzip", "Vary": "Accept-Encoding"}
    if takes_gzip or answer.method == "HEAD":
        answer.headers["Content-Encoding"] = "gzip"
        answer.body = stored
    else:
        answer.headers["Warning"] = "214 UploadServer gunzipped"
        answer.body, answer.has_length = answer.data, False
