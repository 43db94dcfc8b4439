"""DNS for Services: `SERVICE.NAMESPACE.svc.cluster.local` is the addresses of its ready Pods.

Started by the node's main module; Envoy and others ask it over UDP or TCP. Every Service is headless here, whatever its
type: there is no kube-proxy. `Directory` knows Services and Pods, `answer` only names. Other names do not exist, except
`localhost`: nothing is ever forwarded.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from dnslib import QTYPE, RCODE, RR, A, DNSError, DNSRecord

Object = dict[str, Any]

Resolve = Callable[[str], Sequence[str] | None]
"""Addresses of a name; None if there is no such name."""

TTL = 1
_LARGEST_UDP = 1232


@dataclass(frozen=True, slots=True)
class Directory:
    """Names from what the informers know."""

    services: Mapping[tuple[str, str], Object]
    pods: Mapping[tuple[str, str], Object]

    def resolve(self, name: str) -> Sequence[str] | None:
        if name == "localhost":
            return ["127.0.0.1"]
        words = name.split(".")
        if words[2:] not in ([], ["svc"], ["svc", "cluster", "local"]) or len(words) < 2:
            return None
        service = self.services.get((words[1], words[0]))
        if service is None:
            return None
        return sorted(address for pod in self.pods.values() if (address := _address(pod, service)))


def _address(pod: Object, service: Object) -> str | None:
    """The Pod's address if the Service selects it and traffic may go to it."""
    metadata, spec = pod["metadata"], service["spec"]
    selector = spec.get("selector")
    if not selector or metadata["namespace"] != service["metadata"]["namespace"]:
        return None
    if not selector.items() <= (metadata.get("labels") or {}).items() or "deletionTimestamp" in metadata:
        return None
    status = pod.get("status") or {}
    ready = any(it["type"] == "Ready" and it["status"] == "True" for it in status.get("conditions") or ())
    return status.get("podIP") if ready or spec.get("publishNotReadyAddresses") else None


def answer(query: DNSRecord, resolve: Resolve) -> DNSRecord:
    """The reply to one query: A records, an empty answer for other types of a known name, or NXDOMAIN."""
    reply = query.reply(ra=0)
    question = query.q
    addresses = resolve(str(question.qname).rstrip(".").lower())
    if addresses is None:
        reply.header.rcode = RCODE.NXDOMAIN
    elif question.qtype in (QTYPE.A, QTYPE.ANY):
        for address in addresses:
            reply.add_answer(RR(question.qname, QTYPE.A, ttl=TTL, rdata=A(address)))
    return reply


class _Udp(asyncio.DatagramProtocol):
    def __init__(self, resolve: Resolve) -> None:
        self._resolve = resolve
        self._transport: asyncio.DatagramTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.DatagramTransport, transport)

    def datagram_received(self, data: bytes, addr: tuple[str | Any, int]) -> None:
        assert self._transport is not None
        with contextlib.suppress(DNSError):
            reply = answer(DNSRecord.parse(data), self._resolve)
            packed = reply.pack()
            # Too long for a datagram: the client asks again over TCP.
            self._transport.sendto(packed if len(packed) <= _LARGEST_UDP else reply.truncate().pack(), addr)


async def _serve_stream(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, resolve: Resolve) -> None:
    """Queries of one TCP connection, each with its length in front."""
    try:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError, DNSError):
            while True:
                length = int.from_bytes(await reader.readexactly(2), "big")
                packed = answer(DNSRecord.parse(await reader.readexactly(length)), resolve).pack()
                writer.write(len(packed).to_bytes(2, "big") + packed)
                await writer.drain()
    finally:
        writer.close()


@contextlib.asynccontextmanager
async def serving(port: int, resolve: Resolve) -> AsyncIterator[None]:
    """Serve on 127.0.0.1:`port`, UDP and TCP, while the block runs."""
    loop = asyncio.get_running_loop()
    udp, _ = await loop.create_datagram_endpoint(lambda: _Udp(resolve), local_addr=("127.0.0.1", port))
    tcp = await asyncio.start_server(lambda r, w: _serve_stream(r, w, resolve), "127.0.0.1", port)
    try:
        yield
    finally:
        udp.close()
        tcp.close()
