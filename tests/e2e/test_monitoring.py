"""The dashboards on a real Prometheus that scrapes real pods: no panel is empty while a policy ramps under traffic."""

from __future__ import annotations

import math
from typing import Any

import aiohttp
import pytest

from funicular.api.base import PLURAL
from funicular.api.verbs import ANNOTATION, Request, Verb
from hack.dashboards import PanelQuery, queries
from hack.demo.installed import Installed
from tests.e2e.account import Account
from tests.e2e.apps import app, patient, served
from tests.integration.stack_fixtures import manifest, on_stage, until

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.timeout(300)]
STEPS = ({"share": 50, "minDuration": "1h", "minSamples": 40}, {"share": 100, "minDuration": "1s", "minSamples": 40})
NAME = "seen"


async def test_no_panel_is_empty(installed: Installed, account: Account) -> None:
    """Every query of every panel of the three dashboards returns data."""
    async with on_stage(installed, NAME) as scene:
        policy = patient(manifest(installed, NAME, classifier=True, steps=STEPS))
        policy["spec"]["slos"].append({"name": "p95", "indicator": "LatencyP95", "bound": "2s"})
        ramped = await served(scene, policy)
        await installed.set_faults("mini", error_rate=0.03)
        async with (
            app(installed, account, "seen-by-users", NAME, 60.0) as users,
            aiohttp.ClientSession() as session,
        ):

            async def empty(query: PanelQuery) -> bool:
                url = f"{installed.node.prometheus_url}/api/v1/query"
                async with session.get(url, params={"query": query.expr}) as answer:
                    found: dict[str, Any] = await answer.json()
                assert found["status"] == "success", f"{query.dashboard}, {query.panel}: {found}"
                return not any(math.isfinite(float(it["value"][1])) for it in found["data"]["result"])

            asked = queries(installed.namespace, NAME, window="5m")
            left: list[PanelQuery] = list(asked)
            await scene.step(0)
            await users.more(600)
            # A revert is a thing of an instant: all else is looked at before.
            reverts = [it for it in left if "revert" in it.panel.lower() or "in standard errors" in it.panel]
            left[:] = [it for it in left if it not in reverts]

            async def all_seen() -> bool:
                left[:] = [it for it in left if await empty(it)]
                account.facts["panels_without_data"] = [f"{it.dashboard}: {it.panel}" for it in left]
                return not left

            await until(all_seen, "every panel has data")
            left[:] = [it for it in reverts if "standard errors" in it.panel]
            await until(all_seen, "the arms differ")
            request = Request(Verb.ABORT, ramped, "dashboards").annotation()
            await installed.kubectl("annotate", PLURAL, NAME, f"{ANNOTATION}={request}")
            await scene.wait(lambda it: bool(it.status.rejected), "it is aborted")
            left[:] = [it for it in reverts if "standard errors" not in it.panel]
            await until(all_seen, "the revert is seen")
            account.facts["panel_queries"] = len(asked)
        await installed.set_faults("mini", error_rate=0.0)
