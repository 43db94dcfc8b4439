"""Bytes on a socket, as no HTTP library would send them. For tests/security; it knows nothing of Funicular."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass

PATIENCE = 30.0


@dataclass(frozen=True)
class Reply:
    """All that came until the server closed, or until it was enough."""

    raw: bytes
    closed: bool

    @property
    def statuses(self) -> list[int]:
        """Of the answers one after the other; bodies in these tests contain no status line."""
        return [int(part[4:7]) for part in self.raw.split(b"HTTP/1.1 ")[1:] for part in (b"1.1 " + part,)]

    @property
    def status(self) -> int:
        return self.statuses[0] if self.statuses else 0


class Wire:
    """One connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    @classmethod
    async def open(cls, port: int) -> Wire:
        return cls(*await asyncio.open_connection("127.0.0.1", port))

    async def __aenter__(self) -> Wire:
        return self

    async def __aexit__(self, *_: object) -> None:
        self._writer.close()
        with contextlib.suppress(OSError):
            await self._writer.wait_closed()

    async def send(self, data: bytes) -> bool:
        """False: the server has gone."""
        try:
            self._writer.write(data)
            await self._writer.drain()
        except OSError:
            return False
        return True

    async def offer(self, data: bytes) -> bool:
        """As send, but what the server does not read at once is kept for later. False: the server has gone."""
        transport = self._writer.transport
        if transport.is_closing() or self._reader.at_eof():
            return False
        if transport.get_write_buffer_size() == 0:
            self._writer.write(data)
        await asyncio.sleep(0)
        return True

    async def until_closed(self, within: float = PATIENCE) -> Reply:
        """Raises TimeoutError when the server keeps the connection."""
        found = b""
        async with asyncio.timeout(within):
            while True:
                try:
                    piece = await self._reader.read(65536)
                except OSError:
                    piece = b""
                if not piece:
                    return Reply(found, closed=True)
                found += piece

    async def until(self, count: int, within: float = PATIENCE) -> Reply:
        """Until `count` answers have begun, or the server closed."""
        found = b""
        async with asyncio.timeout(within):
            while found.count(b"HTTP/1.1 ") < count:
                try:
                    piece = await self._reader.read(65536)
                except OSError:
                    piece = b""
                if not piece:
                    return Reply(found, closed=True)
                found += piece
        return Reply(found, closed=False)


async def say(port: int, data: bytes, within: float = PATIENCE) -> Reply:
    """Sends it and asks for nothing more: the last request should say `connection: close`."""
    async with await Wire.open(port) as wire:
        await wire.send(data)
        return await wire.until_closed(within)


def request(
    body: bytes = b'{"model":"support-chat"}',
    *lines: bytes,
    first: bytes = b"POST /v1/chat/completions HTTP/1.1",
    length: bool = True,
    host: bytes = b"host: gateway",
    close: bool = True,
) -> bytes:
    """A request, with further header lines."""
    head = [first, host, b"content-type: application/json", *lines]
    if length:
        head.append(b"content-length: %d" % len(body))
    if close:
        head.append(b"connection: close")
    return b"\r\n".join(line for line in head if line) + b"\r\n\r\n" + body
