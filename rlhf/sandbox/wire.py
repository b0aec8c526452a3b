"""Messages between client, launcher and monitors: a JSON header, byte blobs and descriptors over a Unix socket."""

import json
import os
import socket
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

_PREFIX = struct.Struct(">II")
_MAX_DESCRIPTORS = 8


@dataclass(frozen=True, slots=True)
class Message:
    """A header (plain data), blobs in order, and descriptors that now belong to the receiver."""

    header: dict[str, Any]
    blobs: list[bytes]
    descriptors: list[int]


def send(
    connection: socket.socket,
    header: dict[str, Any],
    *,
    blobs: Sequence[bytes] = (),
    descriptors: Sequence[int] = (),
) -> None:
    """Write one message; OSError when the other side is gone."""
    head = json.dumps({**header, "blobs": [len(blob) for blob in blobs]}).encode()
    prefix = _PREFIX.pack(len(head), sum(map(len, blobs)))
    data = b"".join([prefix, head, *blobs])
    # In one call while it is small: two processes may send on one socket.
    sent = socket.send_fds(connection, [data], list(descriptors)) if descriptors else 0
    connection.sendall(memoryview(data)[sent:])


def receive(connection: socket.socket) -> Message:
    """Read one message. EOFError when the other side has closed."""
    prefix, descriptors, _, _ = socket.recv_fds(connection, _PREFIX.size, _MAX_DESCRIPTORS)
    try:
        prefix += _exactly(connection, _PREFIX.size - len(prefix)) if prefix else b""
        if not prefix:
            raise EOFError
        head_bytes, blob_bytes = _PREFIX.unpack(prefix)
        header = json.loads(_exactly(connection, head_bytes))
        body = memoryview(_exactly(connection, blob_bytes))
    except BaseException:
        for descriptor in descriptors:
            os.close(descriptor)
        raise
    blobs, start = [], 0
    for length in header.pop("blobs"):
        blobs.append(bytes(body[start : start + length]))
        start += length
    return Message(header, blobs, descriptors)


def _exactly(connection: socket.socket, count: int) -> bytes:
    data = bytearray(count)
    view, filled = memoryview(data), 0
    while filled < count:
        received = connection.recv_into(view[filled:])
        if not received:
            raise EOFError
        filled += received
    return bytes(data)
