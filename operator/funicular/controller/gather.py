"""Reads the world into one Observation. Called by the reconciler; decides nothing.

Everything but a few reads for a revision that is about to ramp (its Secrets, the stable spec) comes from memory: a
revert must not wait for a slow Prometheus or API server.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from funicular.adapters.kube import decode_secret, path_of
from funicular.api.policy import Metadata, RoutingPolicy, parse_metadata, parse_policy, parse_status
from funicular.api.revision import classifier_name, revision_of
from funicular.api.spec import RoutingPolicySpec
from funicular.api.status import Status
from funicular.api.verbs import ANNOTATION, Request, parse, unreadable
from funicular.controller.managed import managed_by
from funicular.controller.wiring import Ports
from funicular.errors import FunicularError, InvalidPolicy, NotFound
from funicular.rollout.observation import Observation, Problem, WorkloadFacts

Json = dict[str, Any]


@dataclass(slots=True)
class Gatherer:
    """Holds what is dear to read again: stable specs by ControllerRevision (they never change)."""

    ports: Ports
    specs: dict[str, RoutingPolicySpec] = field(default_factory=dict)

    async def gather(self, body: Json) -> Observation:
        ports, metadata, status = self.ports, parse_metadata(body), parse_status(body)
        spec, problem = _spec(body)
        request, nonsense = _request(metadata, status)
        starts = spec is not None and is_about_to_ramp(status, spec)
        preflight = (
            self.ports.evaluator.preflight(metadata.key, spec, status.traffic) if spec is not None and starts else ()
        )
        return Observation(
            now=ports.clock.now(),
            metadata=metadata,
            status=status,
            spec=spec,
            spec_problem=problem,
            gateways=self._gateways(metadata, status, spec),
            classifier=self._classifier(metadata, spec),
            problems=(
                *(await self._missing_secrets(metadata, spec) if spec is not None and starts else ()),
                *(preflight or ()),
            ),
            preflight_done=preflight is not None,
            measurements=ports.evaluator.latest(metadata.uid),
            alarm=ports.reports.alarm(metadata.uid),
            request=request,
            bad_request=nonsense,
            managed_by=managed_by(metadata),
            conflict=self._conflict(metadata, spec),
            spec_is_lost=await self._spec_is_lost(metadata, status),
            stable_spec=await self._stable_spec(metadata, status, spec),
        )

    def _gateways(self, metadata: Metadata, status: Status, spec: RoutingPolicySpec | None) -> Any:
        selector = status.traffic.selector if status.traffic else spec.gateway.selector.match_labels if spec else {}
        pods = self.ports.store.gateways_for(metadata.namespace, selector) if selector else ()
        return self.ports.reports.ack_facts(metadata.uid, status.traffic.version if status.traffic else 0, pods)

    def _classifier(self, metadata: Metadata, spec: RoutingPolicySpec | None) -> WorkloadFacts:
        declared = spec.strategy.classifier if spec else None
        if spec is None or declared is None or not declared.image:
            return WorkloadFacts()
        found = self.ports.store.workload(metadata.namespace, classifier_name(metadata.name, revision_of(spec)))
        return found or WorkloadFacts(
            needed=True, available=False, reason="Progressing", message="its Deployment is being made"
        )

    async def _missing_secrets(self, metadata: Metadata, spec: RoutingPolicySpec) -> list[Problem]:
        found: list[Problem] = []
        for index, candidate in enumerate(spec.candidates):
            if candidate.credentials is not None:
                reference = candidate.credentials.secret_ref
                place = f"spec.candidates[{index}].credentials.secretRef"
                found += await self._secret(metadata.namespace, reference.name, reference.key, place)
        return found

    async def _secret(self, namespace: str, name: str, key: str, place: str) -> list[Problem]:
        remedy = f"create it in namespace {namespace}, or correct the reference"
        try:
            secret = await self.ports.kube.get(path_of("v1", "secrets", namespace, name))
        except NotFound:
            return [Problem(place, "SecretMissing", f"Secret {name} does not exist", remedy)]
        if not decode_secret(secret, key):
            return [Problem(place, "SecretMissing", f"Secret {name} has no key {key}", remedy)]
        return []

    def _conflict(self, metadata: Metadata, spec: RoutingPolicySpec | None) -> str | None:
        """An older policy for the same endpoint that the same gateway pod can serve."""
        if spec is None:
            return None
        selector = spec.gateway.selector.match_labels
        for claim in self.ports.store.claims(spec.endpoint.model):
            if claim.uid == metadata.uid:
                return None
            if self.ports.store.can_meet(metadata.namespace, selector, claim):
                return claim.key
        return None

    async def _spec_is_lost(self, metadata: Metadata, status: Status) -> bool:
        """Asked only after a revert, whose traffic is back already."""
        if status.spec_to_revert is None:
            return False
        try:
            await self.ports.history.spec_of(metadata.namespace, status.spec_to_revert)
        except NotFound:
            return True
        except FunicularError:
            return False
        return False

    async def _stable_spec(
        self, metadata: Metadata, status: Status, spec: RoutingPolicySpec | None
    ) -> RoutingPolicySpec | None:
        stable = status.stable
        if (
            stable is None
            or stable.controller_revision is None
            or (spec is not None and revision_of(spec) == stable.revision)
        ):
            return None
        name = f"{metadata.namespace}/{stable.controller_revision}"
        if name not in self.specs:
            try:
                found = await self.ports.history.spec_of(metadata.namespace, stable.controller_revision)
            except NotFound:
                return None
            self.specs[name] = RoutingPolicySpec.model_validate(found)
        return self.specs[name]


def is_about_to_ramp(status: Status, spec: RoutingPolicySpec) -> bool:
    """A revision that is neither stable, nor ramping, nor rejected."""
    known = {r.revision for r in (status.stable, status.candidate) if r is not None} | {
        r.revision for r in status.rejected
    }
    return revision_of(spec) not in known


def _spec(body: Json) -> tuple[RoutingPolicySpec | None, Problem | None]:
    try:
        policy: RoutingPolicy = parse_policy(body)
    except InvalidPolicy as exc:
        return None, Problem(exc.field or "spec", "InvalidSpec", str(exc), exc.remedy)
    return policy.spec, None


def _request(metadata: Metadata, status: Status) -> tuple[Request | None, str | None]:
    """A person's verb that is not answered yet, or a text that is none."""
    text = metadata.annotations.get(ANNOTATION)
    if not text:
        return None, None
    request = parse(text)
    answered = status.last_verb.id if status.last_verb is not None else None
    if request is None:
        return None, (None if answered == unreadable(text[:200]) else text[:200])
    return (None if answered == request.id else request), None
