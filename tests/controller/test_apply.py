"""What an action does to the cluster, where that is more than one call."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

from funicular.adapters.history import ControllerRevisions
from funicular.adapters.kube import KubeClient
from funicular.controller.apply import Applier
from funicular.controller.wiring import Ports
from funicular.errors import NotFound
from funicular.rollout.actions import RecordRevision
from tests.builders import make_metadata

Json = dict[str, Any]


class Revisions:
    """The API server's ControllerRevisions, by name."""

    def __init__(self) -> None:
        self.items: dict[str, Json] = {}

    async def get(self, path: str) -> Json:
        name = path.rsplit("/", 1)[1]
        if name not in self.items:
            raise NotFound(name)
        return self.items[name]

    async def create(self, path: str, body: Json) -> Json:
        self.items[body["metadata"]["name"]] = body
        return body

    async def delete(self, path: str) -> Json:
        return self.items.pop(path.rsplit("/", 1)[1])

    async def list_all(self, path: str, **params: str) -> tuple[list[Json], str]:
        return list(self.items.values()), "1"


async def test_good_specs_do_not_pile_up_and_those_to_go_back_to_stay() -> None:
    revisions, metadata = Revisions(), make_metadata()
    history = ControllerRevisions(cast(KubeClient, revisions))
    applier = Applier(cast(Ports, SimpleNamespace(history=history)))
    status = {"stable": {"controllerRevision": "chat-1"}, "previous": {"controllerRevision": "chat-0"}}
    for number in range(30):
        action = RecordRevision(f"chat-{number}", f"{number}", {"number": number})
        await applier.apply(metadata, {"status": status}, (action,))
    assert {"chat-0", "chat-1", "chat-29"} <= revisions.items.keys()
    assert len(revisions.items) == 10
