"""Commands that ask something of a running policy: abort, pause, resume, promote, approve, retry.

A request is an annotation bound to the revision that was shown (api/verbs.py), so that nobody aborts or promotes what
began to ramp a second ago. It is written with the resourceVersion that was read, and the operator's answer is waited for.
"""

from __future__ import annotations

import asyncio
import sys
import uuid
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from funicular.api.verbs import ANNOTATION, Request, Verb
from funicular.cli.access import Name, Namespace, path, policy, present_namespace, with_cluster
from funicular.errors import Conflict, FunicularError, UserMustFix

if TYPE_CHECKING:
    from funicular.adapters.kube import KubeClient
    from funicular.api.status import Status
    from funicular.api.status import Verb as Answer

Json = dict[str, Any]
POLL_SECONDS = 0.2
ATTEMPTS = 20  # the operator writes the object too, more often than once a second while it ramps

HELP: Mapping[Verb, str] = {
    Verb.ABORT: "Take a revision back at once: share 0 on all gateway pods; it is rejected until it is retried.",
    Verb.PAUSE: "Keep a ramp at its present share; a regression still reverts it.",
    Verb.RESUME: "Let a paused ramp go on.",
    Verb.PROMOTE: "Go to the next step without evidence; from the last step: promote.",
    Verb.APPROVE: "Approve a step that waits for a person.",
    Verb.RETRY: "Let a rejected revision ramp again, from the first step.",
}

Revision = Annotated[
    str | None, typer.Option("--revision", help="The revision it is meant for; refused if another one is there.")
]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]
Timeout = Annotated[float, typer.Option("--timeout", min=0, help="Seconds to wait for the operator's answer.")]


def register(app: typer.Typer, help_panel: str) -> None:
    for verb in Verb:
        app.command(verb.value, help=HELP[verb], rich_help_panel=help_panel)(_command(verb))


def _command(verb: Verb) -> Callable[..., None]:
    def command(
        name: Name, namespace: Namespace = None, revision: Revision = None, yes: Yes = False, timeout: Timeout = 30
    ) -> None:
        place = namespace or present_namespace()
        body = with_cluster(lambda kube: policy(kube, place, name))
        bound = revision_for(verb, body, revision)
        print(f"{place}/{name}: {intention(verb, body, bound)}.")
        if not yes:
            _confirm()
        answer = with_cluster(lambda kube: _ask(kube, verb, body, bound, timeout))
        if answer is None:
            raise FunicularError(
                f"the operator has not answered within {timeout:g} s; the request stays at the policy and is answered when "
                "the operator runs (kubectl get lease funicular-operator -A says which pod leads)"
            )
        if answer.result != "done":
            raise FunicularError(f"{verb} of {bound}: {answer.result}")
        print(f"{verb}: {answer.result}.")

    return command


def _confirm() -> None:
    if not sys.stdin.isatty():
        raise UserMustFix("there is no terminal to ask for a confirmation", remedy="add --yes")
    if not typer.confirm("Go on?"):
        raise typer.Exit(1)


def revision_for(verb: Verb, body: Json, wanted: str | None) -> str:
    """The revision that the operator would bind the verb to: what ramps, else what the spec says.

    Raises UserMustFix where the verb means nothing now, or `wanted` is another revision."""
    from funicular.api.policy import parse_policy
    from funicular.api.revision import revision_of

    policy_now = parse_policy(body)
    status, name = policy_now.status, policy_now.metadata.name
    candidate = status.candidate.revision if status.candidate else None
    there = candidate or revision_of(policy_now.spec)
    if wanted is not None and wanted != there:
        raise UserMustFix(
            f"you name revision {wanted}, but {name} {'ramps' if candidate else 'is at'} {there}",
            remedy=f"look at it (funicular status {name}) and name that one if you mean it",
        )
    is_rejected = any(rejected.revision == there for rejected in status.rejected)
    is_stable = status.stable is not None and status.stable.revision == there
    if verb is Verb.RETRY and (candidate or not is_rejected):
        raise UserMustFix(f"revision {there} of {name} is not rejected: there is nothing to retry")
    if candidate is None and (
        verb not in (Verb.RETRY, Verb.ABORT) or (is_rejected if verb is Verb.ABORT else is_stable)
    ):
        raise UserMustFix(f"no revision of {name} ramps: there is nothing to {verb}")
    return there


def intention(verb: Verb, body: Json, revision: str) -> str:
    """One sentence before the person agrees: what will happen to which revision, from which share."""
    from funicular.cli.render import percent, status_of, step_text

    status = status_of(body)
    share = percent(status.traffic.share.desired if status.traffic else 0)
    place = f"revision {revision} at step {step_text(status)}, {share}"
    match verb:
        case Verb.ABORT if status.stable is not None and status.stable.revision == revision:
            return (
                f"will send everything to the baseline and reject revision {revision}; only a retry lets it ramp again"
            )
        case Verb.ABORT if status.candidate is None:
            return f"will reject revision {revision} before it ramps; only a retry lets it ramp"
        case Verb.ABORT:
            return f"will take {place}, back to 0 % on all gateway pods and reject it; only a retry lets it ramp again"
        case Verb.PAUSE:
            return f"will keep {place}, there until it is resumed; a regression still reverts it"
        case Verb.RESUME:
            return f"will let {place}, go on"
        case Verb.PROMOTE:
            return f"will move {place}, {_next(status, body)} without waiting for evidence"
        case Verb.APPROVE:
            return f"will approve {place}: it goes on as soon as its evidence is complete"
        case Verb.RETRY:
            return f"will take revision {revision} off the rejected ones: it ramps again from the first step"


def _next(status: Status, body: Json) -> str:
    steps, step = body["spec"]["rollout"]["steps"], status.step
    if step is None or step.index + 1 >= len(steps):
        return "to the promotion"
    return f"to the next share, {steps[step.index + 1]['share']:g} %,"


async def _ask(kube: KubeClient, verb: Verb, shown: Json, revision: str, timeout: float) -> Answer | None:
    """Writes the request and waits for its answer; None: there was none in time."""
    namespace, name = shown["metadata"]["namespace"], shown["metadata"]["name"]
    request = Request(verb, revision, uuid.uuid4().hex[:12], await _who(kube))
    await _write(kube, shown, request)
    loop = asyncio.get_running_loop()
    end = loop.time() + timeout
    while True:
        answer = _answer(await policy(kube, namespace, name), request.id)
        if answer is not None or loop.time() >= end:
            return answer
        await asyncio.sleep(POLL_SECONDS)


async def _write(kube: KubeClient, shown: Json, request: Request) -> None:
    """Fenced by the version that was shown. A newer version is looked at again: the revision must still be the same."""
    namespace, name, body = shown["metadata"]["namespace"], shown["metadata"]["name"], shown
    for _ in range(ATTEMPTS):
        meta = body["metadata"]
        fence = {"resourceVersion": meta["resourceVersion"], "uid": shown["metadata"]["uid"]}
        try:
            patch = {"metadata": {**fence, "annotations": {ANNOTATION: request.annotation()}}}
            await kube.patch(path(namespace, name), patch)
            return
        except Conflict:
            body = await policy(kube, namespace, name)
            if body["metadata"]["uid"] != shown["metadata"]["uid"]:
                raise UserMustFix(f"{name} was deleted and made anew", remedy="look at it again") from None
            revision_for(request.verb, body, request.revision)
    raise Conflict(f"{name} changes too fast to write to it: try again")


def _answer(body: Json, identity: str) -> Answer | None:
    from funicular.cli.render import status_of

    last = status_of(body).last_verb
    return last if last is not None and last.id == identity else None


async def _who(kube: KubeClient) -> str:
    """The name that the API server knows the person by, for the history; one word."""
    review = {"apiVersion": "authentication.k8s.io/v1", "kind": "SelfSubjectReview"}
    try:
        answer = await kube.create("/apis/authentication.k8s.io/v1/selfsubjectreviews", review)
    except FunicularError:
        return ""
    return "_".join(str(answer["status"]["userInfo"].get("username", "")).split())
