"""The process node's wiring: arguments, informers, servers, signals. Started by `Cluster`."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import functools
import logging
import os
import shutil
import signal
import sys
from pathlib import Path

import aiohttp

from hack.cluster.node import dns, kubelet, registration
from hack.cluster.node.addresses import Addresses
from hack.cluster.node.api import Api, Informer
from hack.cluster.node.pods import Node, Pods
from hack.cluster.pki import Pki
from hack.cluster.processes import Guard

# What a container inherits from this machine; everything else comes from its image and its Pod.
INHERITED = ("PATH", "HOME", "USER", "LANG", "LC_ALL", "TMPDIR", "PYTHONPATH", "VIRTUAL_ENV", "SSL_CERT_FILE")


async def serve(arguments: argparse.Namespace) -> None:
    """Run until SIGTERM or SIGINT."""
    ended = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, ended.set)
    folder: Path = arguments.folder
    # Nothing is adopted: processes of an earlier node died with it, and so do its files.
    shutil.rmtree(folder / "pods", ignore_errors=True)
    (folder / "pods").mkdir(mode=0o700, parents=True)
    (folder / "logs" / "pods").mkdir(mode=0o700, parents=True, exist_ok=True)
    guard = Guard()
    api = Api.open(arguments.kubeconfig)
    async with contextlib.AsyncExitStack() as stack:
        stack.callback(guard.close)
        stack.push_async_callback(api.close)
        session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0, force_close=True))
        await stack.enter_async_context(session)
        informers = {kind: Informer(api, f"/api/v1/{kind}") for kind in ("pods", "services", "secrets", "configmaps")}
        environment = {name: os.environ[name] for name in INHERITED if name in os.environ}
        environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment.get('PATH', os.defpath)}"
        node = Node(
            name=arguments.name,
            folder=folder,
            images=arguments.images,
            api=api,
            addresses=Addresses(arguments.network, folder / "addresses"),
            configs=informers,
            guard=guard,
            session=session,
            probe_period=arguments.probe_period,
            environment=environment,
        )
        pods = Pods(node)
        for kind in ("secrets", "configmaps"):
            informers[kind].listeners.append(functools.partial(pods.notice_config, kind))
        await registration.register(api, node.name, arguments.kubelet_port)
        tasks = [asyncio.create_task(informer.run()) for kind, informer in informers.items() if kind != "pods"]
        await asyncio.gather(*(informers[kind].synced.wait() for kind in ("services", "secrets", "configmaps")))
        informers["pods"].listeners.append(pods.notice)
        tasks.append(asyncio.create_task(informers["pods"].run()))
        await informers["pods"].synced.wait()
        tasks.append(asyncio.create_task(registration.beat(api, node.name)))
        directory = dns.Directory(informers["services"].objects, informers["pods"].objects)
        pki = Pki(folder / "pki")
        if pki.ca.exists():
            await stack.enter_async_context(kubelet.serving(arguments.kubelet_port, pki, pods))
        # Last: that DNS answers is what `Cluster` takes for "the node is ready".
        await stack.enter_async_context(dns.serving(arguments.dns_port, directory.resolve))
        await _until_ended(ended, tasks)
        await pods.stop()


async def _until_ended(ended: asyncio.Event, tasks: list[asyncio.Task[None]]) -> None:
    """Wait for the signal; a background task that dies takes the node down, rather than leaving it half alive."""
    waiting = asyncio.create_task(ended.wait())
    await asyncio.wait({waiting, *tasks}, return_when=asyncio.FIRST_COMPLETED)
    for task in (waiting, *tasks):
        task.cancel()
    results = await asyncio.gather(waiting, *tasks, return_exceptions=True)
    for result in results:
        if isinstance(result, Exception):
            raise result


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m hack.cluster.node", description=__doc__)
    parser.add_argument("--kubeconfig", type=Path, required=True)
    parser.add_argument("--folder", type=Path, required=True, help="for pods, volumes and logs")
    parser.add_argument("--images", type=Path, required=True, help="JSON file: image -> command")
    parser.add_argument("--network", type=int, required=True, help="pods get addresses 127.NETWORK.0.0/16")
    parser.add_argument("--dns-port", type=int, required=True)
    parser.add_argument("--kubelet-port", type=int, required=True)
    parser.add_argument("--name", default="process-node")
    parser.add_argument("--probe-period", type=float, help="seconds between probes, instead of periodSeconds")
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    asyncio.run(serve(parser.parse_args()))


if __name__ == "__main__":
    main()
