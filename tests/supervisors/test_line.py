"""Messages between process 1 and a worker, in whatever parts they arrive."""

from __future__ import annotations

import socket
import threading

from pkg.supervisors.line import Line


def test_messages_in_parts() -> None:
    ours, theirs = socket.socketpair()
    line = Line(ours)
    theirs.sendall(b'{"a": 1}\n{"b"')
    assert line.receive() == [{"a": 1}]
    theirs.sendall(b": 2}")
    assert line.receive() == []
    theirs.sendall(b"\n")
    assert line.receive() == [{"b": 2}]
    theirs.sendall(b'{"half": ')
    theirs.close()
    assert line.receive() == []
    assert line.receive() is None
    line.close()


def test_many_threads_send_whole_messages() -> None:
    ours, theirs = socket.socketpair()
    sender, reader = Line(ours), Line(theirs)
    text = "x" * 100_000

    def send(number: int) -> None:
        for _ in range(5):
            sender.send(number=number, text=text)

    threads = [threading.Thread(target=send, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    found = []
    for message in reader.messages():
        assert message["text"] == text
        found.append(message["number"])
        if len(found) == 20:
            break
    for thread in threads:
        thread.join()
    assert sorted(found) == sorted([0, 1, 2, 3] * 5)
    sender.close()
    assert list(reader.messages()) == []
    reader.close()
