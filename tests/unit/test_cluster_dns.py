"""DNS answers for Services, from objects, without a socket."""

from __future__ import annotations

from typing import Any

import pytest
from dnslib import QTYPE, RCODE, DNSRecord

from hack.cluster.node.dns import TTL, Directory, answer

Object = dict[str, Any]


def make_pod(
    ip: str, *, ready: bool = True, leaving: bool = False, namespace: str = "shop", app: str = "web"
) -> Object:
    metadata: Object = {"namespace": namespace, "name": ip, "labels": {"app": app, "extra": "1"}}
    if leaving:
        metadata["deletionTimestamp"] = "2026-01-01T00:00:00Z"
    return {
        "metadata": metadata,
        "status": {"podIP": ip, "conditions": [{"type": "Ready", "status": str(ready)}]},
    }


def make_service(name: str, **spec: Any) -> Object:
    return {"metadata": {"namespace": "shop", "name": name}, "spec": {"selector": {"app": "web"}, **spec}}


PODS = [
    make_pod("127.10.0.2"),
    make_pod("127.10.0.1"),
    make_pod("127.10.0.3", ready=False),
    make_pod("127.10.0.4", leaving=True),
    make_pod("127.10.0.5", namespace="other"),
    make_pod("127.10.0.6", app="else"),
]
SERVICES = [
    make_service("web"),
    make_service("eager", publishNotReadyAddresses=True),
    make_service("none", selector={"app": "nobody"}),
    make_service("manual", selector=None),
]


def directory() -> Directory:
    def keyed(objects: list[Object]) -> dict[tuple[str, str], Object]:
        return {(it["metadata"]["namespace"], it["metadata"]["name"]): it for it in objects}

    return Directory(keyed(SERVICES), keyed(PODS))


@pytest.mark.parametrize(
    ("name", "addresses"),
    [
        pytest.param("web.shop.svc.cluster.local", ["127.10.0.1", "127.10.0.2"], id="ready pods of the namespace"),
        pytest.param("web.shop.svc", ["127.10.0.1", "127.10.0.2"], id="short"),
        pytest.param("web.shop", ["127.10.0.1", "127.10.0.2"], id="shortest"),
        pytest.param("eager.shop.svc", ["127.10.0.1", "127.10.0.2", "127.10.0.3"], id="unready ones if asked for"),
        pytest.param("none.shop.svc", [], id="a service without pods exists"),
        pytest.param("manual.shop.svc", [], id="a service without selector has none"),
        pytest.param("absent.shop.svc", None, id="no such service"),
        pytest.param("web.other.svc", None, id="not in that namespace"),
        pytest.param("web", None, id="no namespace"),
        pytest.param("web.shop.svc.example.com", None, id="a foreign domain"),
        pytest.param("localhost", ["127.0.0.1"], id="localhost"),
    ],
)
def test_names(name: str, addresses: list[str] | None) -> None:
    assert directory().resolve(name) == addresses


def reply_to(name: str, kind: str) -> DNSRecord:
    return answer(DNSRecord.question(name, kind), directory().resolve)


def test_an_a_query_is_answered_with_a_short_life() -> None:
    records = reply_to("WEB.shop.svc.cluster.local", "A").rr
    assert [(str(it.rdata), it.ttl, it.rtype) for it in records] == [
        ("127.10.0.1", TTL, QTYPE.A),
        ("127.10.0.2", TTL, QTYPE.A),
    ]


def test_an_aaaa_query_for_a_known_name_is_empty_and_no_error() -> None:
    reply = reply_to("web.shop.svc.cluster.local", "AAAA")
    assert (reply.header.rcode, reply.rr) == (RCODE.NOERROR, [])


def test_an_unknown_name_does_not_exist() -> None:
    assert reply_to("example.com", "A").header.rcode == RCODE.NXDOMAIN
