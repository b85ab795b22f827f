"""Our parser beside h11 and httptools, on heads and chunked bodies that Hypothesis makes and mangles.

Where both agree with us there is nothing to say.  Where one does not, the difference has to be one of those listed
here with its reason; anything else fails.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import h11
import httptools
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pkg import _core

CHECK = settings(
    max_examples=600, deadline=None, database=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True
)

# ------------------------------------------------------------------ three readers, one result


@dataclass(frozen=True)
class Head:
    method: str
    target: str
    minor: int
    headers: tuple[tuple[str, str], ...]
    """Names in lower case."""
    body: bytes | None = None


PARTIAL = "partial"
Result = Head | str
"""A head, PARTIAL, or what was wrong."""


def ours(data: bytes, seen: int = 0) -> Result:
    try:
        head = _core.parse_head(data, seen)
    except _core.ParseError as error:
        return error.name
    if head is None:
        return PARTIAL
    headers = tuple((n.lower(), v) for n, v in head.headers)
    return Head(head.method, head.target, int(head.version[-1]), headers)


def by_h11(data: bytes) -> Result:
    connection = h11.Connection(h11.SERVER, max_incomplete_event_size=100_000)
    connection.receive_data(data)
    try:
        event = connection.next_event()
    except h11.RemoteProtocolError as error:
        return str(error)
    if event is h11.NEED_DATA:
        return PARTIAL
    assert isinstance(event, h11.Request), event
    headers = tuple((n.decode("latin-1"), v.decode("latin-1")) for n, v in event.headers)
    return Head(event.method.decode("latin-1"), event.target.decode("latin-1"), int(event.http_version[-1:]), headers)


class _Collector:
    def __init__(self) -> None:
        self.target = b""
        self.headers: list[tuple[str, str]] = []
        self.complete = self.done = False
        self.body = b""

    def on_url(self, url: bytes) -> None:
        self.target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers.append((name.decode("latin-1").lower(), (value or b"").decode("latin-1")))

    def on_headers_complete(self) -> None:
        self.complete = True

    def on_body(self, data: bytes) -> None:
        self.body += data

    def on_message_complete(self) -> None:
        self.done = True


def by_httptools(data: bytes) -> Result:
    collector = _Collector()
    parser = httptools.HttpRequestParser(collector)
    try:
        parser.feed_data(data)
    except httptools.HttpParserUpgrade:
        pass
    except httptools.HttpParserError as error:
        if not collector.complete:
            return f"{type(error).__name__}: {error}"
    if not collector.complete:
        return PARTIAL
    headers = tuple((n, v.strip(" \t")) for n, v in collector.headers)
    return Head(
        parser.get_method().decode(), collector.target.decode("latin-1"), int(parser.get_http_version()[-1]), headers
    )


# ------------------------------------------------------------------ heads

TOKEN = "!#$%&'*+-.^_`|~0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
methods = st.sampled_from(["GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH"])
targets = st.one_of(
    st.sampled_from(["/", "/index.html?a=b", "http://t.example/x", "/%20"]),
    st.text("abcXYZ019/?&=;:@!$'()*+,-._~%", max_size=30).map(lambda s: "/" + s),
)
names = st.one_of(
    st.sampled_from(["Accept", "X-A", "Cookie", "Content-Type", "User-Agent", "x"]),
    st.text(TOKEN, min_size=1, max_size=20),
).filter(lambda n: n.lower() not in FRAMING)
FRAMING = {"host", "content-length", "transfer-encoding", "connection", "expect", "upgrade", "proxy-connection"}
values = st.text(st.characters(min_codepoint=0x20, max_codepoint=0xFF, exclude_characters="\x7f"), max_size=40).map(
    lambda s: s.strip(" \t")
)
headers = st.lists(st.tuples(names, values), max_size=12)
spaces = st.sampled_from(["", " ", "\t", "  ", " \t "])


@st.composite
def heads(draw: Any) -> tuple[bytes, Head]:
    """A head that is good by every grammar, and what it says."""
    method, target, minor = draw(methods), draw(targets), draw(st.sampled_from([0, 1]))
    fields = [("Host", "t.example"), *draw(headers)]
    text = f"{method} {target} HTTP/1.{minor}\r\n"
    for name, value in fields:
        text += f"{name}:{draw(spaces)}{value}{draw(spaces)}\r\n"
    head = Head(method, target, minor, tuple((n.lower(), v) for n, v in fields))
    return (text + "\r\n").encode("latin-1"), head


@CHECK
@given(heads())
def test_good_heads_are_read_alike(made: tuple[bytes, Head]) -> None:
    data, head = made
    assert ours(data) == head
    assert by_h11(data) == head
    assert by_httptools(data) == head


@CHECK
@given(heads(), st.data())
def test_where_it_is_cut_does_not_matter(made: tuple[bytes, Head], data: Any) -> None:
    whole, head = made
    cuts = sorted(data.draw(st.lists(st.integers(1, len(whole) - 1), max_size=5, unique=True)))
    seen = 0
    for cut in cuts:
        assert ours(whole[:cut], seen) == PARTIAL
        seen = cut
    assert ours(whole, seen) == head
    assert ours(whole + b"GET / HTTP/1.1\r\n", seen) == head


SPICE = [
    *(bytes([c]) for c in b"\r\n \t\0:,;\x7f\x80\xff\x0b%/?#*"),
    *(b"\r\n", b"HTTP/1.1", b"HTTP/1.0", b"HTTP/2.0", b"http://", b"a@", b"[::1]", b"\r\n\r\n"),
    *(b"Host: u\r\n", b"Connection: close\r\n", b"Expect: 100-continue\r\n", b"Expect: x\r\n"),
    *(b"Content-Length: %b\r\n" % value for value in (b"0", b"00", b"1, 1", b"+1")),
    *(b"Transfer-Encoding: %b\r\n" % value for value in (b"chunked", b"gzip, chunked", b"identity")),
    *(b" folded\r\n", b"X : y\r\n"),
]


@st.composite
def mangled(draw: Any) -> bytes:
    """A good head after a few accidents."""
    data: bytes = draw(heads())[0]
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, len(data)))
        match draw(st.sampled_from(["insert", "delete", "replace", "double", "line"])):
            case "insert":
                data = data[:at] + draw(st.sampled_from(SPICE)) + data[at:]
            case "delete":
                data = data[:at] + data[at + draw(st.integers(1, 4)) :]
            case "replace":
                data = data[:at] + bytes([draw(st.integers(0, 255))]) + data[at + 1 :]
            case "double":
                data = data[:at] + data[max(0, at - draw(st.integers(1, 12))) :]
            case "line":  # at a line's beginning, where fields go
                lines = data.split(b"\r\n")
                lines.insert(min(1, len(lines)), draw(st.sampled_from([s for s in SPICE if s[-1:] == b"\n"]))[:-2])
                data = b"\r\n".join(lines)
    return data


# What we refuse, by our error's name, and the other takes.  Each of these is a way to be read differently by two.
H11_TAKES = {
    "LINE_END": "a bare LF ends a line for h11 (RFC 9112 2.2 allows it; so two readers differ)",
    "FOLDED_LINE": "h11 unfolds lines (RFC 9112 5.2 lets a server refuse)",
    "HEADER_VALUE": "h11 lets control characters other than NUL, CR and LF pass (RFC 9110 5.5: dangerous)",
    "CONTENT_LENGTH": "h11 takes `1, 1` for 1 (RFC 9112 6.3 allows it)",
    "CONTENT_LENGTH_REPEATED": "h11 takes two equal lengths for one (RFC 9112 6.3 allows it)",
    "FRAMING": "h11 lets chunks overrule a length (RFC 9112 6.3 allows it, and calls it a likely attack)",
    "EXPECTATION": "h11 leaves unknown expectations to the application; RFC 9110 10.1.1 has 417 for them",
    "TARGET": "h11 lets any visible characters be a target; RFC 9112 3.2 has four forms",
    "TRANSFER_ENCODING_1_0": "h11 decodes chunks in HTTP/1.0; RFC 9112 6.1 calls such framing faulty",
    "VERSION_MAJOR": "h11 leaves the version to the application",
}
HTTPTOOLS_TAKES = {
    "LINE_END": "llhttp skips CR and LF before a request, in any order",
    "EMPTY_LINES": "llhttp skips any number of empty lines",
    "HOST_MISSING": "llhttp does not look for Host (RFC 9112 3.2 demands 400)",
    "HOST_REPEATED": "llhttp does not look for Host (RFC 9112 3.2 demands 400)",
    "REQUEST_LINE": "llhttp skips spaces before the target",
    "VERSION": "llhttp skips spaces before the version",
    "TARGET": "llhttp takes any scheme for an absolute form, and does not look into the authority",
    "TRANSFER_CODING": "llhttp leaves transfer codings other than chunked to the application",
    "TRANSFER_ENCODING": "llhttp leaves transfer codings other than chunked to the application",
    "TRANSFER_ENCODING_1_0": "llhttp decodes chunks in HTTP/1.0; RFC 9112 6.1 calls such framing faulty",
    "EXPECTATION": "llhttp leaves expectations to the application",
}
# What we take, or wait for the end of, and the other refuses, by its words.
H11_REFUSES = {
    "illegal request line": "h11 refuses bytes over 127 in a target; nginx and gunicorn pass them on",
    "no request line received": "h11 refuses an empty line before the request; RFC 9112 2.2 wants one skipped",
}
HTTPTOOLS_REFUSES = {
    "Invalid char in url": "httptools refuses bytes over 127 in a target; nginx and gunicorn pass them on",
    "Invalid method encountered": "llhttp knows a list of methods; any token is one (RFC 9110 9.1)",
    "Expected space after method": "llhttp knows a list of methods; any token is one (RFC 9110 9.1)",
}


def compare(data: bytes, us: Result, them: Result, takes: dict[str, str], refuses: dict[str, str]) -> None:
    """AssertionError: a difference that is not listed."""
    if us == them:
        return
    if isinstance(us, str) and us != PARTIAL:
        if isinstance(them, str):
            return  # both refuse; or we did at once, and they judge a line when more of it has come
        assert us in takes, f"{data!r}\nours    {us}\ntheirs  {them}"
    else:
        assert isinstance(them, str) and any(words in them for words in refuses), f"{data!r}\nours {us}\ntheirs {them}"


@CHECK
@given(mangled())
def test_mangled_heads_beside_h11(data: bytes) -> None:
    compare(data, ours(data), by_h11(data), H11_TAKES, H11_REFUSES)


@CHECK
@given(mangled())
def test_mangled_heads_beside_httptools(data: bytes) -> None:
    compare(data, ours(data), by_httptools(data), HTTPTOOLS_TAKES, HTTPTOOLS_REFUSES)


@CHECK
@given(mangled(), st.data())
def test_mangled_heads_however_cut(data: bytes, draws: Any) -> None:
    """The verdict depends on the bytes, not on the reads.  Once refused it stays so."""
    whole = ours(data)
    seen = 0
    for cut in sorted(draws.draw(st.lists(st.integers(1, len(data)), max_size=6, unique=True))):
        result = ours(data[:cut], seen)
        if result != PARTIAL:
            assert result == whole
            return
        seen = cut
    assert ours(data, seen) == whole


EXAMPLES = {
    "LINE_END": b"GET / HTTP/1.1\nHost: t\n\n",
    "FOLDED_LINE": b"GET / HTTP/1.1\r\nHost: t\r\nX: a\r\n b\r\n\r\n",
    "HEADER_VALUE": b"GET / HTTP/1.1\r\nHost: t\r\nX: \x01\r\n\r\n",
    "CONTENT_LENGTH": b"GET / HTTP/1.1\r\nHost: t\r\nContent-Length: 1, 1\r\n\r\n",
    "CONTENT_LENGTH_REPEATED": b"GET / HTTP/1.1\r\nHost: t\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\n",
    "FRAMING": b"GET / HTTP/1.1\r\nHost: t\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
    "EXPECTATION": b"GET / HTTP/1.1\r\nHost: t\r\nExpect: x\r\n\r\n",
    "TARGET": b"GET htttp://t/ HTTP/1.1\r\nHost: t\r\n\r\n",
    "VERSION_MAJOR": b"GET / HTTP/2.0\r\nHost: t\r\n\r\n",
    "TRANSFER_ENCODING_1_0": b"GET / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n",
    "HOST_MISSING": b"GET / HTTP/1.1\r\n\r\n",
    "HOST_REPEATED": b"GET / HTTP/1.1\r\nHost: t\r\nHost: t\r\n\r\n",
    "EMPTY_LINES": b"\r\n" * 9 + b"GET / HTTP/1.1\r\nHost: t\r\n\r\n",
    "REQUEST_LINE": b"GET  / HTTP/1.1\r\nHost: t\r\n\r\n",
    "VERSION": b"GET /  HTTP/1.1\r\nHost: t\r\n\r\n",
    "TRANSFER_CODING": b"POST / HTTP/1.1\r\nHost: t\r\nTransfer-Encoding: gzip, chunked\r\n\r\n",
    "TRANSFER_ENCODING": b"POST / HTTP/1.1\r\nHost: t\r\nTransfer-Encoding: \xe4\r\n\r\n",
}
HTTPTOOLS_LINE_END = b"\rGET / HTTP/1.1\r\nHost: t\r\n\r\n"


@pytest.mark.parametrize("name", H11_TAKES)
def test_listed_differences_from_h11_exist(name: str) -> None:
    data = EXAMPLES[name]
    assert ours(data) == name
    assert isinstance(by_h11(data), Head), "the list says more than there is"


@pytest.mark.parametrize("name", HTTPTOOLS_TAKES)
def test_listed_differences_from_httptools_exist(name: str) -> None:
    data = HTTPTOOLS_LINE_END if name == "LINE_END" else EXAMPLES[name]
    assert ours(data) == name
    assert isinstance(by_httptools(data), Head), "the list says more than there is"


# ------------------------------------------------------------------ chunked bodies


@dataclass(frozen=True)
class Body:
    data: bytes
    complete: bool


def our_body(data: bytes, cuts: tuple[int, ...] = ()) -> Body | str:
    decoder = _core.ChunkedDecoder()
    out = b""
    edges = [0, *cuts, len(data)]
    for start, end in itertools.pairwise(edges):
        if decoder.complete:
            break
        try:
            decoded, consumed = decoder.decode(data[start:end])
        except _core.ParseError as error:
            return error.name
        out += decoded
        assert decoder.complete or consumed == end - start
    return Body(out, decoder.complete)


HEAD = b"POST / HTTP/1.1\r\nHost: t\r\nTransfer-Encoding: chunked\r\n\r\n"


def h11_body(data: bytes) -> Body | str:
    connection = h11.Connection(h11.SERVER, max_incomplete_event_size=100_000)
    connection.receive_data(HEAD + data)
    assert isinstance(connection.next_event(), h11.Request)
    out = b""
    while True:
        try:
            event = connection.next_event()
        except h11.RemoteProtocolError as error:
            return str(error)
        if isinstance(event, h11.Data):
            out += bytes(event.data)
        else:
            return Body(out, isinstance(event, h11.EndOfMessage))


def httptools_body(data: bytes) -> Body | str:
    collector = _Collector()
    try:
        httptools.HttpRequestParser(collector).feed_data(HEAD + data)
    except httptools.HttpParserError as error:
        if not collector.done:
            return f"{type(error).__name__}: {error}"
    return Body(collector.body, collector.done)


extensions = st.sampled_from(["", "", ";a", ";a=b", ';a="b"', ";a;b=c"])


@st.composite
def bodies(draw: Any) -> tuple[bytes, bytes]:
    parts = draw(st.lists(st.binary(min_size=1, max_size=40), max_size=6))
    text = b""
    for part in parts:
        size = draw(st.sampled_from(["%x", "%X", "0%x", "000%X"])) % len(part)
        text += (size + draw(extensions)).encode() + b"\r\n" + part + b"\r\n"
    text += b"0" * draw(st.integers(1, 3)) + b"\r\n"
    for name in draw(st.lists(st.sampled_from(["X", "Trailer-Field"]), max_size=2)):
        text += name.encode() + b": y\r\n"
    return text + b"\r\n", b"".join(parts)


@st.composite
def mangled_bodies(draw: Any) -> bytes:
    data: bytes = draw(bodies())[0]
    spice = [b"\r\n", *(bytes([c]) for c in b'\r\n \t;="0fg+-x_\0\xff')]
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, len(data)))
        match draw(st.sampled_from(["insert", "delete", "replace"])):
            case "insert":
                data = data[:at] + draw(st.sampled_from(spice)) + data[at:]
            case "delete":
                data = data[:at] + data[at + draw(st.integers(1, 4)) :]
            case "replace":
                data = data[:at] + draw(st.sampled_from(spice)) + data[at + 1 :]
    return data


@CHECK
@given(bodies(), st.data())
def test_good_bodies_are_read_alike(made: tuple[bytes, bytes], draws: Any) -> None:
    data, body = made
    cuts = tuple(sorted(draws.draw(st.lists(st.integers(0, len(data)), max_size=6))))
    assert our_body(data) == our_body(data, cuts) == our_body(data + b"GET / HTTP") == Body(body, True)
    assert h11_body(data) == httptools_body(data) == Body(body, True)


H11_BODY_TAKES = {
    "CHUNK_EXTENSION": "h11 skips whatever stands between a chunk's size and its CRLF (RFC 9112 7.1.1 has a grammar)",
    "TRAILER": "h11 lets a bare LF end a trailer's line",
}
HTTPTOOLS_BODY_TAKES = {
    "CHUNK_EXTENSION": "llhttp lets names of extensions be empty, and quotes end anywhere",
}
H11_BODY_REFUSES = {
    "illegal chunk header": "h11 has no white space before `;`; RFC 9112 7.1.1 has BWS, which must be read",
}
HTTPTOOLS_BODY_REFUSES = {
    "Invalid character in chunk extensions": "llhttp has no white space in extensions; RFC 9112 7.1.1 has BWS",
    "Invalid character in chunk size": "llhttp has no white space before `;`; RFC 9112 7.1.1 has BWS",
}


def compare_bodies(
    data: bytes, us: Body | str, them: Body | str, takes: dict[str, str], refuses: dict[str, str]
) -> None:
    if us == them or (isinstance(us, str) and isinstance(them, str)):
        return
    if isinstance(us, str):
        assert isinstance(them, Body)
        # They read line by line or byte by byte: what is incomplete for them may yet turn out wrong.
        assert us in takes or not them.complete, f"{data!r}\nours    {us}\ntheirs  {them}"
    else:
        assert isinstance(them, str) and any(words in them for words in refuses), f"{data!r}\nours {us}\ntheirs {them}"


@CHECK
@given(mangled_bodies())
def test_mangled_bodies_beside_h11(data: bytes) -> None:
    compare_bodies(data, our_body(data), h11_body(data), H11_BODY_TAKES, H11_BODY_REFUSES)


@CHECK
@given(mangled_bodies())
def test_mangled_bodies_beside_httptools(data: bytes) -> None:
    compare_bodies(data, our_body(data), httptools_body(data), HTTPTOOLS_BODY_TAKES, HTTPTOOLS_BODY_REFUSES)


@CHECK
@given(mangled_bodies(), st.data())
def test_mangled_bodies_however_cut(data: bytes, draws: Any) -> None:
    cuts = tuple(sorted(draws.draw(st.lists(st.integers(0, len(data)), max_size=8))))
    assert our_body(data, cuts) == our_body(data)


@pytest.mark.parametrize(
    ("read", "data", "name"),
    [
        (h11_body, b"1 \r\nx\r\n0\r\n\r\n", "CHUNK_EXTENSION"),
        (h11_body, b"0\r\nX: y\n\r\n", "TRAILER"),
        (httptools_body, b"1;;a\r\nx\r\n0\r\n\r\n", "CHUNK_EXTENSION"),
    ],
)
def test_listed_differences_of_bodies_exist(read: Any, data: bytes, name: str) -> None:
    assert our_body(data) == name
    assert read(data).complete


@pytest.mark.parametrize("read", [h11_body, httptools_body])
def test_white_space_before_an_extension_is_ours_alone(read: Any) -> None:
    data = b"1 ;a\r\nx\r\n0\r\n\r\n"
    assert our_body(data) == Body(b"x", True)
    assert isinstance(read(data), str)
