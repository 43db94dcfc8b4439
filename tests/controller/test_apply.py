"""What an action does to the cluster, where that is more than one call."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from funicular.adapters.history import ControllerRevisions
from funicular.adapters.kube import KubeClient
from funicular.api.revision import revision_of
from funicular.api.status import Status
from funicular.controller.apply import Applier
from funicular.controller.gather import Gatherer
from funicular.controller.wiring import Ports
from funicular.errors import ApiUnavailable, FunicularError, NotFound, RetryLater
from funicular.rollout.actions import Emit, RecordRevision, RestoreSpec
from tests.builders import make_metadata, make_spec

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


class Seen:
    """Records what was told, and the patches."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def record(self, policy: Any, kind: str, reason: str, message: str) -> None:
        self.told.append(reason)


async def test_a_spec_to_write_back_that_is_gone_is_not_taken_for_a_policy_that_is_gone() -> None:
    """Else what the gateways confirmed would be forgotten, and the revert wait for them for ever."""
    metadata, spec = make_metadata(), make_spec()
    seen, history = Seen(), ControllerRevisions(cast(KubeClient, Revisions()))
    applier = Applier(cast(Ports, SimpleNamespace(history=history, events=seen)))
    body = {"metadata": {}, "spec": spec.model_dump(mode="json", by_alias=True, exclude_none=True)}
    actions = (Emit("Reverted", "back", warning=True), RestoreSpec("chat-1", revision_of(spec)))
    with pytest.raises(RetryLater, match="ControllerRevision chat-1 is gone"):
        await applier.apply(metadata, body, actions)
    assert seen.told == ["Reverted"]


@pytest.mark.parametrize(
    ("name", "failure", "is_lost"),
    [
        pytest.param(None, NotFound("x"), False, id="nothing is to be written back"),
        pytest.param("chat-1", None, False, id="it is there"),
        pytest.param("chat-1", NotFound("x"), True, id="it is gone"),
        pytest.param("chat-1", ApiUnavailable("x"), False, id="nobody knows"),
    ],
)
async def test_a_spec_is_lost_only_if_the_api_server_says_so(
    name: str | None, failure: FunicularError | None, is_lost: bool
) -> None:
    class History:
        async def spec_of(self, namespace: str, name: str) -> Json:
            if failure is not None:
                raise failure
            return {}

    gatherer = Gatherer(cast(Ports, SimpleNamespace(history=History())))
    assert await gatherer._spec_is_lost(make_metadata(), Status(spec_to_revert=name)) is is_lost
