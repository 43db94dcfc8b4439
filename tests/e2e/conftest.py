"""One real node with Funicular installed by its chart, for all e2e tests. Their account is tests/e2e/account.py's.

Needs root, and the binaries and images that `make e2e` makes first. The tests of a file run in the order they stand in; the
files in that of `ORDER`, because what upgrades and uninstalls comes last.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import pytest_asyncio

from hack.demo.installed import Installed
from hack.demo.stack import CHECKOUT
from hack.image.build import build
from hack.node import Node
from tests.e2e.account import Account
from tests.integration.stack_fixtures import FRONTIER, MINI, NEXT

LEASE_SECONDS = 6.0
NAMESPACE = "funicular"
IMAGES = CHECKOUT / ".run" / "images"  # kept: an unchanged archive is not written again
ORDER = (
    "test_node",
    "test_install",
    "test_ramp",
    "test_faults",
    "test_monitoring",
    "test_security",
    "test_argocd",
    "test_lifecycle",
)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--out", type=Path, default=None, help="folder for e2e.json, the report and logs of what failed")
    parser.addoption("--node", default="e2e", help="name of the node: two runs side by side need two")
    parser.addoption(
        "--war-seconds", type=float, default=45.0, help="how long writes to the spec are counted after a revert"
    )


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    def place(item: pytest.Item) -> int:
        name = item.path.stem
        return ORDER.index(name) if name in ORDER else len(ORDER) - 1

    items.sort(key=place)  # stable: within a file nothing moves
    for item in items:
        item.add_marker(pytest.mark.e2e)


def pytest_configure(config: pytest.Config) -> None:
    account = Account(config.getoption("--out") or Path("out") / "e2e")
    config.pluginmanager.register(account, "account")


@pytest.fixture(scope="session")
def account(pytestconfig: pytest.Config) -> Account:
    """Where a test writes what it measured."""
    found = pytestconfig.pluginmanager.get_plugin("account")
    assert isinstance(found, Account)
    return found


@pytest.fixture(scope="session")
def node(pytestconfig: pytest.Config, account: Account) -> Iterator[Node]:
    """A whole node with NetworkPolicy, metrics-server, Prometheus and our images."""
    if os.geteuid() != 0:
        pytest.exit("a real node needs root: namespaces, cgroups and a bridge", returncode=2)
    images = build(IMAGES, say=account.say)
    account.images(images)
    with Node.start(
        pytestconfig.getoption("--node"), images=[images.archive], metrics_server=True, report=account.say
    ) as running:
        account.node = running
        yield running
        account.node = None


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def installed(node: Node, account: Account) -> AsyncIterator[Installed]:
    """The chart, three gateway pods, two operators, three providers."""
    it = Installed(
        node,
        namespace=NAMESPACE,
        gateways=3,
        operators=2,
        providers=(FRONTIER, MINI, NEXT),
        lease_seconds=LEASE_SECONDS,
    )
    try:
        async with asyncio.timeout(240):
            await it.start(timeout=120)
        account.say("operator, gateways and providers are ready")
        yield it
    finally:
        await it.stop()
