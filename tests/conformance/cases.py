"""Cases by section of RFC 9112 and RFC 9110 (named 9112-x and 9110-x): bytes in, requests or a refusal out.

A case says what a server has to make of the bytes, whoever feeds them; how they are fed is test_conformance.py's.

    ok(...)    each request is given to the application, and the connection then persists, unless close=True
    bad(...)   the requests before it are, then comes one refusal with that status, and nothing more
    wait(...)  the requests before it are; the rest is the beginning of something and is neither
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import NamedTuple

__all__ = ["CASES", "Case", "Request"]


class Request(NamedTuple):
    method: str = "GET"
    target: str = "/"
    body: bytes = b""


@dataclass(frozen=True)
class Case:
    section: str
    name: str
    raw: bytes
    requests: tuple[Request, ...]
    refusal: int = 0
    """Status of what follows the requests; 0: none."""
    close: bool = False
    """Nothing after these bytes is served."""
    partial: bool = False
    """The bytes end in the middle."""

    @property
    def id(self) -> str:
        return f"{self.section}/{self.name}"


CASES: list[Case] = []
_section = ""


def section(name: str) -> None:
    global _section
    _section = name


def ok(name: str, raw: bytes, *requests: Request, close: bool = False) -> None:
    CASES.append(Case(_section, name, raw, requests or (GET,), close=close))


def bad(name: str, raw: bytes, status: int, *before: Request) -> None:
    CASES.append(Case(_section, name, raw, before, status, close=True))


def wait(name: str, raw: bytes, *before: Request) -> None:
    CASES.append(Case(_section, name, raw, before, partial=True))


def head(*lines: bytes, line: bytes = b"GET / HTTP/1.1", host: bytes = b"Host: t\r\n") -> bytes:
    """A head of this request line, Host and these lines."""
    return line + b"\r\n" + host + b"".join(x + b"\r\n" for x in lines) + b"\r\n"


def post(*lines: bytes, body: bytes = b"", version: bytes = b"1.1") -> bytes:
    return head(*lines, line=b"POST / HTTP/" + version) + body


def chunked(body: bytes) -> bytes:
    return post(b"Transfer-Encoding: chunked", body=body)


GET = Request()
POST = Request("POST")


def posted(body: bytes) -> Request:
    return Request("POST", "/", body)


# ------------------------------------------------------------------ messages

section("9112-2.2")
ok("plain", head())
for n in range(1, 5):
    ok(f"{n}-empty-lines-before", b"\r\n" * n + head())
bad("5-empty-lines-before", b"\r\n" * 5 + head(), 400)
ok("empty-line-between", head() + b"\r\n" + head(), GET, GET)
bad("bare-lf-before", b"\n" + head(), 400)
bad("bare-cr-before", b"\r" + head(), 400)
bad("lf-after-request-line", b"GET / HTTP/1.1\nHost: t\r\n\r\n", 400)
bad("lf-after-field", b"GET / HTTP/1.1\r\nHost: t\n\r\n", 400)
bad("lf-everywhere", b"GET / HTTP/1.1\nHost: t\n\n", 400)
bad("lf-as-blank-line", b"GET / HTTP/1.1\r\nHost: t\r\n\n" + head(), 400)
bad("cr-as-line-end", b"GET / HTTP/1.1\rHost: t\r\n\r\n", 400)
bad("cr-cr-lf", b"GET / HTTP/1.1\r\r\nHost: t\r\n\r\n", 400)
bad("cr-cr-lf-after-field", b"GET / HTTP/1.1\r\nHost: t\r\r\n\r\n", 400)
bad("cr-in-blank-line", b"GET / HTTP/1.1\r\nHost: t\r\n\r\r\n", 400)
bad("lf-cr", b"GET / HTTP/1.1\n\rHost: t\n\r\n\r", 400)
bad("space-before-first-field", b"GET / HTTP/1.1\r\n Host: t\r\n\r\n", 400)
bad("tab-before-first-field", b"GET / HTTP/1.1\r\n\tX: y\r\nHost: t\r\n\r\n", 400)
bad("only-white-space-line", b"GET / HTTP/1.1\r\n \r\nHost: t\r\n\r\n", 400)
bad("nul-first", b"\0" + head(), 400)
bad("utf-8-bom", b"\xef\xbb\xbf" + head(), 400)
bad("tls-client-hello", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400)
bad("http2-preface", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400)
bad("ssh-banner", b"SSH-2.0-OpenSSH_9.2\r\n\r\n", 400)
bad("socks-5", b"\x05\x01\x00", 400)
for cut in (0, 1, 3, 4, 5, 13, 14, 15, 16, 20, 24, 25, 26, 27):
    wait(f"cut-at-{cut}", b"GET / HTTP/1.1\r\nHost: test\r\n\r\n"[:cut])
wait("cut-after-one", head() + b"GET / HT", GET)

section("9112-2.3")
ok("1.1", head())
ok("1.0", b"GET / HTTP/1.0\r\n\r\n", close=True)
ok("higher-minor", head(line=b"GET / HTTP/1.2"))
ok("highest-minor", head(line=b"GET / HTTP/1.9"))
for version in (b"HTTP/0.9", b"HTTP/2.0", b"HTTP/3.0", b"HTTP/9.9"):
    bad(f"major-{version.decode()}", head(line=b"GET / " + version), 505)
for name, version in {
    "lower-case": b"http/1.1",
    "mixed-case": b"Http/1.1",
    "no-slash": b"HTTP 1.1",
    "no-minor": b"HTTP/1",
    "no-minor-digit": b"HTTP/1.",
    "no-major": b"HTTP/.1",
    "comma": b"HTTP/1,1",
    "two-digit-major": b"HTTP/11.1",
    "leading-zero": b"HTTP/01.1",
    "sign": b"HTTP/+1.1",
    "hex": b"HTTP/a.1",
    "space-inside": b"HTTP/ 1.1",
    "other-protocol": b"HTCPCP/1.0",
    "shorter-name": b"HTT/1.1",
    "longer-name": b"HTTPS/1.1",
    "full-width-digit": "HTTP/1.\uff11".encode(),
}.items():
    bad(name, head(line=b"GET / " + version), 400)
bad("two-digit-minor", head(line=b"GET / HTTP/1.10"), 400)
bad("trailing-space", head(line=b"GET / HTTP/1.1 "), 400)
bad("trailing-text", head(line=b"GET / HTTP/1.1 x"), 400)

# ------------------------------------------------------------------ the request line

section("9112-3")
for name, line in {
    "empty-method": b" / HTTP/1.1",
    "two-spaces-after-method": b"GET  / HTTP/1.1",
    "two-spaces-after-target": b"GET /  HTTP/1.1",
    "tab-after-method": b"GET\t/ HTTP/1.1",
    "tab-after-target": b"GET /\tHTTP/1.1",
    "vertical-tab": b"GET\x0b/ HTTP/1.1",
    "form-feed": b"GET /\x0cHTTP/1.1",
    "nbsp": b"GET\xa0/ HTTP/1.1",
    "no-target": b"GET HTTP/1.1",
    "empty-target": b"GET  HTTP/1.1",
    "http-0.9": b"GET /",
    "only-method": b"GET",
    "method-space": b"GET ",
    "four-words": b"GET / x HTTP/1.1",
    "leading-space": b" GET / HTTP/1.1",
    "response-line": b"HTTP/1.1 200 OK",
    "field-line": b"Host: t",
}.items():
    bad(name, head(line=line), 400)

section("9112-3.1")
for method in ("HEAD", "POST", "PUT", "DELETE", "OPTIONS", "TRACE", "PATCH", "PROPFIND", "VERSION-CONTROL", "get", "G"):
    ok(f"method-{method}", head(line=method.encode() + b" / HTTP/1.1"), Request(method))
ok("method-of-every-token-char", head(line=b"!#$%&'*+-.^_`|~09AZaz / HTTP/1.1"), Request("!#$%&'*+-.^_`|~09AZaz"))
ok("method-of-32", head(line=b"M" * 32 + b" / HTTP/1.1"), Request("M" * 32))
bad("method-of-33", head(line=b"M" * 33 + b" / HTTP/1.1"), 501)
for char in b'"(),/:;<=>?@[\\]{}':
    bad(f"method-with-{chr(char)}", head(line=b"GE" + bytes([char]) + b"T / HTTP/1.1"), 400)
for char in (0, 1, 8, 0x1F, 0x7F, 0x80, 0xC3, 0xFF):
    bad(f"method-with-{char:02x}", head(line=b"GE" + bytes([char]) + b"T / HTTP/1.1"), 400)

section("9112-3.2.1")
for target in (
    "/a",
    "/a/b/c",
    "//",
    "//a//b",
    "/a;p=1/b;q",
    "/?",
    "/?q",
    "/a?b=c&d=%20",
    "/a??b?c",
    "/%00",
    "/%2e%2e/%2F",
    "/../..",
    "/.",
    "/a:b@c!$&'()*+,;=-._~",
    "/?a/b:c@d?e",
    "/*",
    "/http://x/",
    "/%zz",
    "/%",
    "/%4",
):
    ok(f"target-{target}", head(line=f"GET {target} HTTP/1.1".encode()), Request("GET", target))
for char in b'"<>\\^`{|}':
    # RFC 3986 has none of these, but browsers and clients send them all the time in what is no path delimiter.
    CASES.append(Case("9112-3.2", f"target-with-{chr(char)}", head(line=b"GET /" + bytes([char]) + b" HTTP/1.1"), ()))
for char in (*range(0x00, 0x09), 0x0B, 0x0C, *range(0x0E, 0x20), 0x7F):
    bad(f"target-with-{char:02x}", head(line=b"GET /a" + bytes([char]) + b" HTTP/1.1"), 400)
    bad(f"query-with-{char:02x}", head(line=b"GET /?a" + bytes([char]) + b" HTTP/1.1"), 400)
for char in (0x80, 0xA0, 0xC3, 0xFF):
    # No URI has them (RFC 3986), but clients send UTF-8 as it is, and nginx and gunicorn pass it on.
    for part in ("/a", "/?a"):
        line = b"GET " + part.encode() + bytes([char]) + b" HTTP/1.1"
        ok(f"target-{part}-and-{char:02x}", head(line=line), Request("GET", f"{part}{chr(char)}"))
    bad(f"authority-with-{char:02x}", head(line=b"GET http://a" + bytes([char]) + b"/ HTTP/1.1"), 400)
bad("target-with-fragment", head(line=b"GET /a#b HTTP/1.1"), 400)
bad("query-with-fragment", head(line=b"GET /?a#b HTTP/1.1"), 400)
for target in (b"a", b"?q", b"#", b".", b"a/b", b"\\", b"%2f", b":80", b"[::1]"):
    bad(f"no-form-{target.decode()}", head(line=b"GET " + target + b" HTTP/1.1"), 400)

section("9112-3.2.2")
for target in (
    "http://a",
    "http://a/",
    "http://a/b?c=d",
    "http://a?q",
    "http://a:80/",
    "http://a:/",
    "https://a/",
    "HTTP://a/",
    "http://[::1]:8080/x",
    "http://[2001:db8::1]/",
    "http://127.0.0.1/",
    "http://a.b-c_d~e/",
    "http://%41/",
):
    ok(f"absolute-{target}", head(line=f"GET {target} HTTP/1.1".encode()), Request("GET", target))
ok("absolute-other-host", head(line=b"GET http://other/ HTTP/1.1"), Request("GET", "http://other/"))
ok("absolute-in-1.0", b"GET http://a/ HTTP/1.0\r\n\r\n", Request("GET", "http://a/"), close=True)
for target in (
    b"http://",
    b"http:///",
    b"http:/a/",
    b"http:a",
    b"http//a/",
    b"ftp://a/",
    b"://a/",
    b"http://u@a/",
    b"http://u:p@a/",
    b"http://a b/",
    b"http://a:b/",
    b"http://a:65536/",
    b"http://a:99999/",
    b"http://[::1/",
    b"http://::1/",
    b"http://[::g]/",
    b"http://[1:2:3]/",
    b"http://[]/",
    b"http://a\\b/",
    b"http://?q",
    b"http://#f",
    b"http://%4/",
    b"http://a%zz/",
):
    bad(f"absolute-{target.decode()}", head(line=b"GET " + target + b" HTTP/1.1"), 400)

section("9112-3.2.3")
for target in ("a:80", "a.example:443", "127.0.0.1:1", "[::1]:65535", "%41:80"):
    bad(f"connect-{target}", head(line=f"CONNECT {target} HTTP/1.1".encode()), 501)  # there are no tunnels here
for target in (
    b"a",
    b"a:",
    b"a:0",
    b"a:65536",
    b"a:http",
    b":80",
    b"/",
    b"http://a:80/",
    b"*",
    b"u@a:80",
    b"a:80/",
    b"a:80?q",
):
    bad(f"connect-{target.decode()}", head(line=b"CONNECT " + target + b" HTTP/1.1"), 400)
bad("authority-of-get", head(line=b"GET a:80 HTTP/1.1"), 400)

section("9112-3.2.4")
bad("asterisk-of-get", head(line=b"GET * HTTP/1.1"), 400)
bad("asterisk-of-post", head(line=b"POST * HTTP/1.1"), 400)
bad("two-asterisks", head(line=b"OPTIONS ** HTTP/1.1"), 400)
bad("asterisk-path", head(line=b"OPTIONS *a HTTP/1.1"), 400)
bad("asterisk-lower-case-method", head(line=b"options * HTTP/1.1"), 400)

# ------------------------------------------------------------------ Host

section("9112-3.2")
for host in (
    b"a",
    b"",
    b"a:80",
    b"a:",
    b"A.Example",
    b"127.0.0.1",
    b"127.0.0.1:8080",
    b"[::1]",
    b"[::1]:80",
    b"[::ffff:1.2.3.4]",
    b"[v1.a:b]",
    b"a_b",
    b"a.",
    b"%41",
    b"xn--nxasmq6b",
    b"!$&'()*+;=~",
    b"a:65535",
    b"a:0",
    b"a,b",
):
    ok(f"host-{host.decode()}", head(host=b"Host: " + host + b"\r\n"))
for host in (
    b"a b",
    b"a:b",
    b"a:80:80",
    b"a:65536",
    b"a:-1",
    b"a/b",
    b"/",
    b"a?b",
    b"a#b",
    b"u@a",
    b"@",
    b":80",
    b"http://a",
    b"[::1",
    b"::1",
    b"[::1]a",
    b"[::1]]",
    b"[1::2::3]",
    b"[:::]",
    b"[1:2:3:4:5:6:7]",
    b"[1:2:3:4:5:6:7:8:9]",
    b"[12345::]",
    b"[::256.1.1.1]",
    b"[::01.1.1.1]",
    b"[::1%25eth0]",
    b"[v.a]",
    b"[v1.]",
    b"a%",
    b"a%4",
    b"a%zz",
    b"\xc3\xa4",
    b"a\\b",
    b'"a"',
    b"<a>",
    b"a;\x80",
):
    bad(f"host-{host!r}", head(host=b"Host: " + host + b"\r\n"), 400)
bad("host-missing", head(host=b""), 400)
bad("host-missing-in-1.2", head(line=b"GET / HTTP/1.2", host=b""), 400)
ok("host-missing-in-1.0", head(line=b"GET / HTTP/1.0", host=b""), close=True)
bad("host-twice", head(b"Host: t"), 400)
bad("host-twice-different", head(b"Host: u"), 400)
bad("host-twice-in-other-case", head(b"HOST: t"), 400)
bad("host-twice-in-1.0", head(b"Host: t", line=b"GET / HTTP/1.0"), 400)
bad("host-twice-empty", head(b"Host:"), 400)
bad("host-missing-with-absolute-form", head(line=b"GET http://a/ HTTP/1.1", host=b""), 400)
bad("host-with-underscore-name", b"GET / HTTP/1.1\r\nHo_st: t\r\n\r\n", 400)

# ------------------------------------------------------------------ fields

section("9112-5")
ok("no-value", head(b"X:"))
ok("white-space-as-value", head(b"X: \t "))
ok("no-space-after-colon", head(b"X:y"))
ok("tabs-around", head(b"X:\ty\t"))
ok("spaces-around", head(b"X:     y     "))
ok("colons-in-value", head(b"X: a:b: c"))
ok("every-token-char-in-name", head(b"!#$%&'*+-.^_`|~09AZaz: y"))
ok("one-char-name", head(b"x: y"))
ok("repeated", head(b"X: 1", b"X: 2", b"x: 3"))
ok("name-that-starts-like-a-known-one", head(b"Hos: a", b"Hostt: b", b"Content-Lengt: x", b"Transfer-Encodin: y"))
ok("underscored-framing", head(b"Content_Length: 5", b"Transfer_Encoding: chunked"))
bad("no-colon", head(b"X"), 400)
bad("empty-name", head(b": y"), 400)
bad("only-colon", head(b":"), 400)
bad("space-in-name", head(b"X Y: z"), 400)
for name in (b"X", b"Host", b"Content-Length", b"Transfer-Encoding"):
    bad(f"space-before-colon-{name.decode()}", head(name + b" : 0", host=b"Host: t\r\n"), 400)
    bad(f"tab-before-colon-{name.decode()}", head(name + b"\t: 0"), 400)
for char in b'"(),/;<=>?@[\\]{}':
    bad(f"name-with-{chr(char)}", head(b"X" + bytes([char]) + b"Y: z"), 400)
for char in (*range(0x00, 0x0A), 0x0B, 0x0C, *range(0x0E, 0x20), 0x7F, 0x80, 0xA0, 0xFF):
    bad(f"name-with-{char:02x}", head(b"X" + bytes([char]) + b"Y: z"), 400)
bad("name-begins-with-control", head(b"\x01X: y"), 400)
bad("nameless-framing", head(b"Content-Length:0", b"\x00: x"), 400)

section("9110-5.5")
for char in (0x09, 0x20, *range(0x21, 0x7F), 0x80, 0xA0, 0xC3, 0xFF):
    ok(f"value-with-{char:02x}", head(b"X: a" + bytes([char]) + b"b"))
for char in (*range(0x00, 0x09), 0x0B, 0x0C, *range(0x0E, 0x20), 0x7F):
    bad(f"value-with-{char:02x}", head(b"X: a" + bytes([char]) + b"b"), 400)
    bad(f"value-begins-with-{char:02x}", head(b"X: " + bytes([char])), 400)
bad("value-with-cr", head(b"X: a\rb"), 400)
bad("value-with-lf", head(b"X: a\nb"), 400)
bad("value-with-lf-and-field", head(b"X: a\nContent-Length: 5"), 400)
bad("value-with-cr-and-field", head(b"X: a\rContent-Length: 5"), 400)

section("9112-5.2")
bad("folded-by-space", head(b"X: a", b" b"), 400)
bad("folded-by-tab", head(b"X: a", b"\tb"), 400)
bad("folded-empty", head(b"X: a", b" "), 400)
bad("folded-host", b"GET / HTTP/1.1\r\nHost:\r\n t\r\n\r\n", 400)
bad("folded-length", post(b"Content-Length:", b" 3", body=b"abc"), 400)
bad("folded-coding", post(b"Transfer-Encoding:", b" chunked", body=b"0\r\n\r\n"), 400)

# ------------------------------------------------------------------ framing

section("9112-6.2")
for size in (0, 1, 2, 10, 1000):
    ok(f"length-{size}", post(b"Content-Length: %d" % size, body=b"x" * size), posted(b"x" * size))
ok("length-of-get", head(b"Content-Length: 3") + b"abc", Request("GET", "/", b"abc"))
ok("length-of-head", head(b"Content-Length: 3", line=b"HEAD / HTTP/1.1") + b"abc", Request("HEAD", "/", b""))
ok("length-in-lower-case", post(b"content-length: 3", body=b"abc"), posted(b"abc"))
ok("length-with-leading-zeros", post(b"Content-Length: 0003", body=b"abc"), posted(b"abc"))
ok("length-with-white-space", post(b"Content-Length:\t 3 \t", body=b"abc"), posted(b"abc"))
ok("no-length", post(), POST)
ok("body-that-looks-like-a-request", post(b"Content-Length: %d" % len(head()), body=head()), posted(head()))
ok("length-in-1.0", post(b"Content-Length: 3", body=b"abc", version=b"1.0"), posted(b"abc"), close=True)
ok(
    "two-posts",
    post(b"Content-Length: 1", body=b"a") + post(b"Content-Length: 1", body=b"b"),
    posted(b"a"),
    posted(b"b"),
)
bad("excess-is-a-request", post(b"Content-Length: 3", body=b"abcdef\r\n\r\n"), 400, posted(b"abc"))
BAD_LENGTHS = (
    b"",
    b"x",
    b"+3",
    b"-3",
    b"-0",
    b"3.0",
    b"0x3",
    b"3x",
    b"3 3",
    b"3,3",
    b"3, 3",
    b"3;3",
    b",3",
    b"3,",
    b'"3"',
    b"3_0",
    b"1e1",
    b"\xb2",
    b"9223372036854775808",
    b"18446744073709551615",
    b"18446744073709551619",
    b"99999999999999999999",
    b"0" * 20 + b"3",
)
for value in BAD_LENGTHS:
    bad(f"length-{value!r}", post(b"Content-Length: " + value, body=b"abc"), 400)
    bad(f"length-{value!r}-of-get", head(b"Content-Length: " + value), 400)
bad("length-twice", post(b"Content-Length: 3", b"Content-Length: 3", body=b"abc"), 400)
bad("length-twice-different", post(b"Content-Length: 3", b"Content-Length: 0", body=b"abc"), 400)
bad("length-twice-apart", post(b"Content-Length: 3", b"X: y", b"CONTENT-LENGTH: 4", body=b"abc"), 400)
for n in (1, 2):
    wait(f"length-{n}-short", post(b"Content-Length: 3", body=b"abc"[:-n]))

section("9112-6.1")
ONE = b"3\r\nabc\r\n0\r\n\r\n"
for value in (b"chunked", b"Chunked", b"CHUNKED", b" chunked ", b"\tchunked\t"):
    ok(f"coding-{value!r}", post(b"Transfer-Encoding:" + value, body=ONE), posted(b"abc"))
ok("coding-of-get", head(b"Transfer-Encoding: chunked") + ONE, Request("GET", "/", b"abc"))
ok("coding-name-in-lower-case", post(b"transfer-encoding: chunked", body=ONE), posted(b"abc"))
BAD_CODINGS = (
    b"",
    b",",
    b"chunked,",
    b",chunked",
    b"chunked, ",
    b"chunked,,chunked",
    b"chunked, chunked",
    b"chunked, identity",
    b"chunked, gzip",
    b"chunked;q=1",
    b"chunked; x",
    b"chunked chunked",
    b'"chunked"',
    b"chunked;",
    b"gzip,",
    b"(chunked)",
    b"chunked/1",
)
UNKNOWN_CODINGS = (
    b"gzip",
    b"identity",
    b"x",
    b"xchunked",
    b"chunkedx",
    b"chunke",
    b"gzip, chunked",
    b"x;a=b",
    b"identity, chunked",
)
for value in BAD_CODINGS:
    bad(f"coding-{value!r}", post(b"Transfer-Encoding: " + value, body=ONE), 400)
for value in UNKNOWN_CODINGS:
    bad(f"coding-{value!r}", post(b"Transfer-Encoding: " + value, body=ONE), 501)
bad("coding-twice", post(b"Transfer-Encoding: chunked", b"Transfer-Encoding: chunked", body=ONE), 400)
bad("coding-then-identity", post(b"Transfer-Encoding: chunked", b"Transfer-Encoding: identity", body=ONE), 400)
bad("coding-then-empty", post(b"Transfer-Encoding: chunked", b"Transfer-Encoding:", body=ONE), 400)
bad("gzip-then-chunked", post(b"Transfer-Encoding: gzip", b"Transfer-Encoding: chunked", body=ONE), 501)
bad("coding-in-1.0", post(b"Transfer-Encoding: chunked", body=ONE, version=b"1.0"), 400)
bad(
    "coding-in-1.0-keep-alive",
    post(b"Connection: keep-alive", b"Transfer-Encoding: chunked", body=ONE, version=b"1.0"),
    400,
)
bad("coding-with-vertical-tab", post(b"Transfer-Encoding: \x0bchunked", body=ONE), 400)
bad("coding-with-nul", post(b"Transfer-Encoding: chunked\x00", body=ONE), 400)

section("9112-6.3")
for length, coding in product(
    (b"0", b"3", b"13", b"y", b"", b"3, 3"), (b"chunked", b"identity", b"gzip, chunked", b"x")
):
    lines = (b"Content-Length: " + length, b"Transfer-Encoding: " + coding)
    bad(f"both-{length!r}-{coding!r}", post(*lines, body=ONE), 400)
    bad(f"both-{coding!r}-{length!r}", post(*reversed(lines), body=ONE), 400)
bad("both-apart", post(b"Content-Length: 3", b"X: y", b"Z: y", b"Transfer-Encoding: chunked", body=ONE), 400)
bad("both-in-1.0", post(b"Content-Length: 3", b"Transfer-Encoding: chunked", body=ONE, version=b"1.0"), 400)

# ------------------------------------------------------------------ chunks

section("9112-7.1")
for name, data, body in [
    ("empty", b"0\r\n\r\n", b""),
    ("one", ONE, b"abc"),
    ("two", b"1\r\na\r\n2\r\nbc\r\n0\r\n\r\n", b"abc"),
    ("upper-case-hex", b"A\r\n0123456789\r\n0\r\n\r\n", b"0123456789"),
    ("lower-case-hex", b"a\r\n0123456789\r\n0\r\n\r\n", b"0123456789"),
    ("leading-zeros", b"0003\r\nabc\r\n0\r\n\r\n", b"abc"),
    ("16-digits", b"0000000000000003\r\nabc\r\n0\r\n\r\n", b"abc"),
    ("zeros-at-the-end", b"3\r\nabc\r\n000\r\n\r\n", b"abc"),
    ("16-zeros-at-the-end", b"3\r\nabc\r\n0000000000000000\r\n\r\n", b"abc"),
    ("crlf-in-data", b"4\r\n\r\n\r\n\r\n0\r\n\r\n", b"\r\n\r\n"),
    ("chunks-in-data", b"5\r\n0\r\n\r\n\r\n0\r\n\r\n", b"0\r\n\r\n"),
    ("a-request-in-data", b"%x\r\n%b\r\n0\r\n\r\n" % (len(head()), head()), head()),
    ("256-bytes", b"100\r\n" + b"x" * 256 + b"\r\n0\r\n\r\n", b"x" * 256),
    ("many", b"1\r\nx\r\n" * 300 + b"0\r\n\r\n", b"x" * 300),
]:
    ok(name, chunked(data), posted(body))
ok("two-messages", chunked(ONE) + chunked(b"0\r\n\r\n"), posted(b"abc"), POST)
for name, data in {
    "no-size": b"\r\nabc\r\n0\r\n\r\n",
    "sign": b"+3\r\nabc\r\n0\r\n\r\n",
    "minus": b"-3\r\nabc\r\n0\r\n\r\n",
    "0x": b"0x3\r\nabc\r\n0\r\n\r\n",
    "underscore": b"0_3\r\nabc\r\n0\r\n\r\n",
    "no-hex": b"g\r\nabc\r\n0\r\n\r\n",
    "hex-then-letter": b"3g\r\nabc\r\n0\r\n\r\n",
    "space-before": b" 3\r\nabc\r\n0\r\n\r\n",
    "tab-before": b"\t3\r\nabc\r\n0\r\n\r\n",
    "space-inside": b"1 0\r\n" + b"x" * 16 + b"\r\n0\r\n\r\n",
    "lf-after-size": b"3\nabc\r\n0\r\n\r\n",
    "cr-after-size": b"3\rabc\r\n0\r\n\r\n",
    "cr-cr-lf-after-size": b"3\r\r\nabc\r\n0\r\n\r\n",
    "nul-after-size": b"3\0\r\nabc\r\n0\r\n\r\n",
    "17-digits": b"00000000000000003\r\nabc\r\n0\r\n\r\n",
    "17-zeros": b"0" * 17 + b"\r\n\r\n",
    "2^63": b"8000000000000000\r\nabc",
    "2^64": b"10000000000000000\r\nabc",
    "2^64+3": b"10000000000000003\r\nabc\r\n0\r\n\r\n",
    "data-too-long": b"3\r\nabcd\r\n0\r\n\r\n",
    "data-too-short": b"4\r\nabc\r\n0\r\n\r\n",
    "lf-after-data": b"3\r\nabc\n0\r\n\r\n",
    "cr-after-data": b"3\r\nabc\r0\r\n\r\n",
    "nothing-after-data": b"3\r\nabc0\r\n\r\n",
    "two-crlf-after-data": b"3\r\nabc\r\n\r\n0\r\n\r\n",
    "lf-after-last": b"3\r\nabc\r\n0\n\r\n",
    "lf-at-the-end": b"3\r\nabc\r\n0\r\n\n",
    "lf-lf-at-the-end": b"3\r\nabc\r\n0\n\n",
    "decimal-point": b"3.0\r\nabc\r\n0\r\n\r\n",
    "quoted": b'"3"\r\nabc\r\n0\r\n\r\n',
    "full-width-digit": "\uff13".encode() + b"\r\nabc\r\n0\r\n\r\n",
}.items():
    bad(name, chunked(data), 400)
for cut in range(len(ONE)):
    wait(f"cut-at-{cut}", chunked(ONE[:cut]))

section("9112-7.1.1")
for extension in (
    b";",
    b";;",
    b"; ;",
    b";=",
    b"; =x",
    b";a=",
    b";a==b",
    b";a=b=c",
    b';a="b',
    b';a="b"c',
    b';a=b"c"',
    b";a b",
    b";a\x00b",
    b";a=\x7f",
    b';a="\x00"',
    b';a="\\\x01"',
    b";\xe4",
    b";a=\xe4",
    b" ",
    b"\t",
    b" ;a ",
    b";a ",
    b";a=b ",
    b"\x0b;a",
    b" a",
    b",a",
):
    bad(f"extension-{extension!r}", chunked(b"3" + extension + b"\r\nabc\r\n0\r\n\r\n"), 400)
    bad(f"last-extension-{extension!r}", chunked(b"3\r\nabc\r\n0" + extension + b"\r\n\r\n"), 400)
for extension in (
    b";a",
    b";a=b",
    b';a="b"',
    b';a="b;c=d"',
    b';a="\\""',
    b';a="\xe4 \t"',
    b';a=""',
    b";a;b=c;d",
    b" ; a = b",
    b"\t;\ta\t=\tb",
    b";a" + b"x" * 1000,
):
    ok(f"extension-{extension[:30]!r}", chunked(b"3" + extension + b"\r\nabc\r\n0\r\n\r\n"), posted(b"abc"))
    ok(f"last-extension-{extension[:30]!r}", chunked(b"3\r\nabc\r\n0" + extension + b"\r\n\r\n"), posted(b"abc"))
bad("extension-with-lf", chunked(b"3;a\nabc\r\n0\r\n\r\n"), 400)
bad("extension-with-cr", chunked(b"3;a\rb\r\nabc\r\n0\r\n\r\n"), 400)
bad("quoted-extension-with-crlf", chunked(b'3;a="\r\n"\r\nabc\r\n0\r\n\r\n'), 400)
bad("extension-of-5000", chunked(b"3;" + b"a" * 5000 + b"\r\nabc\r\n0\r\n\r\n"), 400)
bad("extensions-of-5000-in-all", chunked(b"1;aaaaaaaaa\r\nx\r\n" * 500 + b"0\r\n\r\n"), 400)

section("9112-7.1.2")
for trailer in (b"X: y\r\n", b"X: y\r\nZ: w\r\n", b"X:\r\n", b"X:\t y \r\n", b"Host: u\r\n", b"Content-Length: 3\r\n"):
    ok(f"trailer-{trailer!r}", chunked(b"3\r\nabc\r\n0\r\n" + trailer + b"\r\n"), posted(b"abc"))
for trailer in (
    b"X\r\n",
    b": y\r\n",
    b"X : y\r\n",
    b"X y: z\r\n",
    b" X: y\r\n",
    b"X: y\r\n folded\r\n",
    b"X: y\n",
    b"X: a\rb\r\n",
    b"X: \x00\r\n",
    b"X: \x7f\r\n",
    b"\xe4: y\r\n",
    b"X(: y\r\n",
    b"GET / HTTP/1.1\r\n",
):
    bad(f"trailer-{trailer!r}", chunked(b"3\r\nabc\r\n0\r\n" + trailer + b"\r\n"), 400)
bad("trailers-65", chunked(b"0\r\n" + b"X: y\r\n" * 65 + b"\r\n"), 400)
bad("trailer-of-9000", chunked(b"0\r\nX: " + b"y" * 9000 + b"\r\n\r\n"), 400)

# ------------------------------------------------------------------ the connection

section("9112-9.3")
ok("persists", head() + head() + head(), GET, GET, GET)
ok("persists-on-keep-alive", head(b"Connection: keep-alive"))
ok("closes-on-close", head(b"Connection: close"), close=True)
ok("closes-on-close-before-more", head(b"Connection: close") + head(), close=True)
for value in (
    b"Close",
    b"CLOSE",
    b"x, close",
    b"close, x",
    b"keep-alive, close",
    b"close, keep-alive",
    b" ,close",
    b"x,\tclose\t,y",
):
    ok(f"close-as-{value!r}", head(b"Connection: " + value), close=True)
for value in (b"", b"x", b"closed", b"clos", b"not-close", b"close;x", b'"close"', b"close x"):
    ok(f"no-close-{value!r}", head(b"Connection: " + value))
ok("two-connection-fields", head(b"Connection: x", b"Connection: close"), close=True)
ok("close-then-keep-alive-field", head(b"Connection: close", b"Connection: keep-alive"), close=True)
ok("1.0-closes", head(line=b"GET / HTTP/1.0"), close=True)
ok("1.0-closes-before-more", head(line=b"GET / HTTP/1.0") + head(), close=True)
ok("1.0-keep-alive", head(b"Connection: keep-alive", line=b"GET / HTTP/1.0"))
ok("1.0-keep-alive-in-other-case", head(b"connection: Keep-Alive", line=b"GET / HTTP/1.0"))
ok("1.0-keep-alive-in-a-list", head(b"Connection: x, keep-alive", line=b"GET / HTTP/1.0"))
ok("1.0-keep-alive-and-close", head(b"Connection: keep-alive, close", line=b"GET / HTTP/1.0"), close=True)
ok("1.0-keep-alive-header-alone", head(b"Keep-Alive: timeout=5", line=b"GET / HTTP/1.0"), close=True)
ok("proxy-connection-means-nothing", head(b"Proxy-Connection: close"))
ok("upgrade-is-ignored", head(b"Connection: upgrade", b"Upgrade: websocket"))
ok(
    "h2c-is-ignored",
    head(b"Connection: Upgrade, HTTP2-Settings", b"Upgrade: h2c", b"HTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA"),
)

section("9112-9.3.2")
ok(
    "ten-of-every-kind",
    (head() + post(b"Content-Length: 1", body=b"a") + chunked(ONE)) * 3,
    *[GET, posted(b"a"), posted(b"abc")] * 3,
)
ok("head-before-get", head(line=b"HEAD / HTTP/1.1") + head(), Request("HEAD"), GET)
bad("good-then-bad", head() + b"BAD\r\n\r\n", 400, GET)
bad("good-then-bad-then-good", head() + b"GET / HTTP/1.1\r\n\r\n" + head(), 400, GET)
bad("post-then-bad-chunk", post(b"Content-Length: 1", body=b"a") + chunked(b"x\r\n"), 400, posted(b"a"))
bad(
    "good-then-both-lengths",
    head() + post(b"Content-Length: 5", b"Transfer-Encoding: chunked", body=b"0\r\n\r\nX"),
    400,
    GET,
)

section("9110-10.1.1")
ok("expect-without-body", head(b"Expect: 100-continue"))
ok("expect-with-body", post(b"Expect: 100-continue", b"Content-Length: 3", body=b"abc"), posted(b"abc"))
ok("expect-in-other-case", post(b"expect: 100-Continue", b"Content-Length: 3", body=b"abc"), posted(b"abc"))
ok("expect-with-chunks", post(b"Expect: 100-continue", b"Transfer-Encoding: chunked", body=ONE), posted(b"abc"))
ok("expect-of-length-0", post(b"Expect: 100-continue", b"Content-Length: 0"), POST)
ok(
    "expect-in-1.0",
    post(b"Expect: 100-continue", b"Content-Length: 3", body=b"abc", version=b"1.0"),
    posted(b"abc"),
    close=True,
)
ok(
    "other-expect-in-1.0",
    post(b"Expect: x", b"Content-Length: 3", body=b"abc", version=b"1.0"),
    posted(b"abc"),
    close=True,
)
ok("empty-expect", head(b"Expect:"))
for value in (b"x", b"100-continue, x", b"x, 100-continue", b"100-continue=1", b"100 continue", b"200-ok"):
    bad(f"expect-{value!r}", post(b"Expect: " + value, b"Content-Length: 3", body=b"abc"), 417)

section("9110-15.5.15")
ok("target-of-8192", head(line=b"GET /" + b"a" * 8191 + b" HTTP/1.1"), Request("GET", "/" + "a" * 8191))
bad("target-of-8193", head(line=b"GET /" + b"a" * 8192 + b" HTTP/1.1"), 414)
bad("query-of-8193", head(line=b"GET /?" + b"a" * 8191 + b" HTTP/1.1"), 414)
bad("target-without-end", b"GET /" + b"a" * 40_000, 414)

section("6585-5")
ok("100-fields", head(*[b"X: y"] * 99))
bad("101-fields", head(*[b"X: y"] * 100), 431)
ok("head-of-32768", head(b"X: " + b"y" * (32768 - len(head(b"X: ")))))
bad("head-of-32769", head(b"X: " + b"y" * (32769 - len(head(b"X: ")))), 431)
bad("field-without-end", b"GET / HTTP/1.1\r\nHost: t\r\nX: " + b"y" * 40_000, 431)
bad("name-without-end", b"GET / HTTP/1.1\r\nHost: t\r\n" + b"x" * 40_000, 431)

assert len({case.id for case in CASES}) == len(CASES), "two cases of one name"
