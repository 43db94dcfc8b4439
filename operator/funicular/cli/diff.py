"""`funicular diff`: what would change, or has changed, and whether it ramps. As with `kubectl diff`, 1 means a difference."""

from __future__ import annotations

import difflib
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
import yaml
from pydantic import ValidationError

from funicular.cli.access import Name, Namespace, policy, present_namespace, with_cluster
from funicular.errors import NotFound, UserMustFix

if TYPE_CHECKING:
    from funicular.adapters.kube import KubeClient

Json = dict[str, Any]


def diff(
    name: Name,
    namespace: Namespace = None,
    file: Annotated[
        Path | None, typer.Option("-f", "--filename", help="A manifest to compare with; default: the last good spec.")
    ] = None,
) -> None:
    """Show how a policy's spec differs from its last good one, or a manifest from the policy, and whether that ramps."""
    place = namespace or present_namespace()

    async def read(kube: KubeClient) -> tuple[Json, Json | None]:
        body = await policy(kube, place, name)
        return body, None if file else await _good_spec(kube, body)

    body, good = with_cluster(read)
    if file is not None:
        before, after, titles = body["spec"], _spec_in(file, name), (f"{name} in the cluster", str(file))
    elif good is not None:
        before, after, titles = good, body["spec"], ("the last good spec", f"{name} in the cluster")
    else:
        raise UserMustFix(
            f"{name} has no good spec yet: no revision of it was promoted", remedy="compare a file: -f policy.yaml"
        )
    lines = difflib.unified_diff(_yaml(before), _yaml(after), *titles, lineterm="", n=3)
    changed = False
    for line in lines:
        changed = True
        print(line)
    print(consequence(body, before, after), file=sys.stderr)
    if changed:
        raise typer.Exit(1)


def consequence(body: Json, before: Json, after: Json) -> str:
    """One sentence: what the second spec does where the first is."""
    from funicular.api.revision import revision_of
    from funicular.api.spec import RoutingPolicySpec
    from funicular.cli.render import status_of

    try:
        old, new = (revision_of(RoutingPolicySpec.model_validate(spec)) for spec in (before, after))
    except ValidationError as exc:
        first = exc.errors(include_url=False, include_input=False)[0]
        at = ".".join(str(part) for part in first["loc"])
        raise UserMustFix(f"spec.{at}: {first['msg']}", remedy="funicular lint says all that is wrong") from exc
    status = status_of(body)
    if any(it.revision == new for it in status.rejected):
        return f"Revision {new} was rejected: it ramps nothing until a retry."
    if status.candidate is not None and status.candidate.revision == new:
        return f"Revision {new} is the one that ramps now."
    if status.stable is not None and status.stable.revision == new:
        return f"Revision {new} is the stable one: nothing ramps."
    if old == new:
        return f"The revision stays {new}: nothing ramps anew."
    return f"Revision {old} becomes {new}: a new ramp, from the first step."


async def _good_spec(kube: KubeClient, body: Json) -> Json | None:
    """Of the ControllerRevision that the stable revision names."""
    from funicular.adapters.kube import path_of
    from funicular.cli.render import status_of

    stable = status_of(body).stable
    if stable is None or not stable.controller_revision:
        return None
    namespace, name = body["metadata"]["namespace"], stable.controller_revision
    try:
        found = await kube.get(path_of("apps/v1", "controllerrevisions", namespace, name))
    except NotFound as exc:
        raise UserMustFix(
            f"the last good spec is gone: somebody deleted ControllerRevision {name}",
            remedy="compare a file: -f policy.yaml",
        ) from exc
    data: Json = found["data"]
    return data


def _spec_in(file: Path, name: str) -> Json:
    try:
        text = sys.stdin.read() if str(file) == "-" else file.read_text()
        documents = [it for it in yaml.safe_load_all(text) if isinstance(it, dict)]
    except (OSError, UnicodeDecodeError, yaml.YAMLError, RecursionError) as exc:
        raise UserMustFix(f"{file} cannot be read: {type(exc).__name__}", remedy="funicular lint says more") from exc
    for document in documents:
        if (document.get("metadata") or {}).get("name") == name and isinstance(document.get("spec"), dict):
            spec: Json = document["spec"]
            return spec
    raise UserMustFix(f"{file} has no RoutingPolicy {name}", remedy="name the file that has it")


def _yaml(spec: Json) -> list[str]:
    """With what the API server would fill in: a default that is not written is no difference."""
    from funicular.api.spec import RoutingPolicySpec

    try:
        whole = RoutingPolicySpec.model_validate(spec).model_dump(mode="json", by_alias=True, exclude_none=True)
    except ValidationError:
        whole = spec
    return yaml.safe_dump(whole, sort_keys=False, allow_unicode=True).splitlines()
