"""Funicular up and idle, to try policies of one's own: `python -m hack.playground`, until Ctrl-C.

A cluster of `hack.cluster` with the operator, two gateway pods, two simulated providers and the load of made-up users on
the endpoint `support-chat`. Prints on stdout what a second terminal needs; everything ends with this process.
"""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys

from rich.console import Console

from hack.cluster import Cluster
from hack.demo import stack
from hack.demo.policies import FRONTIER, MINI
from hack.sim.load_thread import LoadThread
from hack.sim.users import Habits, Population

NAME = "play"
POLICY = """\
apiVersion: routing.funicular.dev/v1alpha1
kind: RoutingPolicy
metadata: {{name: support-chat, namespace: {namespace}}}
spec:
  endpoint: {{model: support-chat}}
  candidates:
    - name: frontier
      baseline: true
      url: {frontier}
      model: gpt-frontier
      credentials: {{secretRef: {{name: frontier-key, key: api-key}}}}
      price: {{inputPerMillion: 1.25, outputPerMillion: 10}}
    - name: mini
      url: {mini}
      model: mini-1
      credentials: {{secretRef: {{name: mini-key, key: api-key}}}}
      price: {{inputPerMillion: 0.1, outputPerMillion: 0.4}}
  strategy:
    classifier: {{image: "{image}", threshold: 0.7, timeout: 100ms, routes: {{easy: mini, hard: frontier}}}}
  assignment: {{minDuration: 0s}}
  slos:
    - {{name: errors, indicator: ErrorRate, max: 0.1, allowedIncrease: 0.06}}
    - {{name: p95, indicator: LatencyP95, bound: 2s}}
  rollout:
    steps: [{{share: 10, minSamples: 300}}, {{share: 50, minSamples: 500}}, {{share: 100, minSamples: 500}}]
    holdback: 10
  prometheus: {{url: "{prometheus}", interval: 2s}}
"""


async def play(rate: float) -> None:
    console = Console(stderr=True, highlight=False)
    cluster = await Cluster.start_async(
        NAME, images=stack.images(), report=lambda line: console.print(line, markup=False)
    )
    try:
        async with stack.Stack(cluster, namespace=NAME, gateways=2, providers=(FRONTIER, MINI)) as it:
            policy = cluster.folder / "policy.yaml"
            policy.write_text(
                POLICY.format(
                    namespace=NAME,
                    frontier=it.provider_url(FRONTIER.name),
                    mini=it.provider_url(MINI.name),
                    image=stack.CLASSIFIER_IMAGE,
                    prometheus=cluster.prometheus_url,
                )
            )
            load = LoadThread(Population(Habits(), model="support-chat", seed=7), it.gateways(), rate=rate, retry=True)
            load.start()
            try:
                print(f"export KUBECONFIG={cluster.kubeconfig}")
                print(f"kubectl apply -f {policy}                  # edit it and apply again: a new revision ramps")
                print(f"kubectl funicular watch support-chat -n {NAME}       # live; or: kubectl -n {NAME} get rp -w")
                print(f"curl {it.gateways()[0]}/v1/models                    # a gateway pod, as applications reach it")
                print(
                    f"# {rate:g} requests/s of made-up users are sent to the endpoint; Ctrl-C here ends everything",
                    flush=True,
                )
                await _interrupted()
            finally:
                await asyncio.to_thread(load.stop)
    finally:
        await cluster.stop_async()


async def _interrupted() -> None:
    ended, loop = asyncio.Event(), asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, ended.set)
    await ended.wait()


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m hack.playground", description=__doc__)
    parser.add_argument("--rate", type=float, default=60.0, help="requests a second of the made-up users")
    try:
        asyncio.run(play(parser.parse_args().rate))
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
