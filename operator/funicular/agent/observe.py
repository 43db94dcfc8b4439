"""Reads Envoy's counters and turns them into `/metrics` and into the counts of ramping policies.

Called by the server (scrapes) and the reporter (once a second while something ramps). The meaning of Envoy's series is
compile's; prices and what is measured come from the policies; what was counted before a restart of Envoy is kept.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass

from funicular.adapters.envoy_admin import EnvoyAdmin
from funicular.agent.counts import REPLICATES, Cell, CountBook
from funicular.agent.exposition import Families, label_text
from funicular.agent.feedback import THUMBS, FeedbackBook
from funicular.agent.metrics import AgentMetrics
from funicular.agent.policies import Policies, Record
from funicular.agent.ports import PolicyKey, Sample, Translate
from funicular.agent.series import Monotone, split
from funicular.api.duration import seconds
from funicular.api.report import Ack, Counts
from funicular.api.spec import Price
from funicular.api.traffic import Traffic
from funicular.errors import GatewayUnavailable

log = logging.getLogger(__name__)
ALL = r"^(funicular\.|server\.uptime$)"
ARM_COUNTS = r"^(funicular\.(outcomes|slow)|server\.uptime$)"
PREFIX = "envoy_funicular_"
ARMS = ("treatment", "control", "holdback")
FRESH = 0.25  # seconds that a reading serves: two scrapers at once ask Envoy once
OUTCOMES, SLOW = "funicular_outcomes_total", "funicular_slow_total"
TOKENS, REPLICATE_TOKENS = "funicular_tokens_total", "funicular_replicate_tokens_total"
COST, REPLICATE_COST = "funicular_cost_dollars_total", "funicular_replicate_cost_dollars_total"
BASELINE_COST = "funicular_baseline_cost_dollars_total"


@dataclass(frozen=True, slots=True)
class Known:
    """A series of Envoy's, understood once."""

    sample: Sample
    text: str  # our labels
    policy: PolicyKey


def price_of(traffic: Traffic, candidate: str) -> Price | None:
    """The newest revision's price of a candidate, else the stable one's."""
    for route in filter(None, (traffic.candidate, traffic.stable)):
        for upstream in route.upstreams:
            if upstream.name == candidate:
                return upstream.price
    return None


def dollars(price: Price, kind: str, tokens: float) -> float:
    return tokens * (price.input_per_million if kind == "prompt" else price.output_per_million) / 1e6


def zeros(key: PolicyKey, traffic: Traffic) -> Families:
    """Every series of a comparison begins at zero, at the same scrape: else a window's first events would be lost."""
    families = Families()
    arms = [
        arm for arm in ARMS if (arm != "holdback" or traffic.holdback) and (arm != "treatment" or traffic.candidate)
    ]
    for arm in arms:
        base = {"namespace": key[0], "policy": key[1], "revision": traffic.compared.revision, "arm": arm}
        cells = [{**base, "replicate": str(i)} for i in range(REPLICATES)]
        families.zero(OUTCOMES, [label_text({**c, "outcome": o}) for c in cells for o in ("good", "bad")])
        families.zero(SLOW, [label_text({**c, "indicator": i}) for c in cells for i in traffic.latency_bounds])
        families.zero(
            "funicular_replicate_feedback_total", [label_text({**c, "kind": k}) for c in cells for k in THUMBS]
        )
        if any(upstream.price for upstream in traffic.compared.upstreams):
            families.zero(REPLICATE_COST, [label_text(c) for c in cells])
    return families


class Observer:
    def __init__(
        self,
        admin: EnvoyAdmin,
        translate: Translate,
        policies: Policies,
        feedback: FeedbackBook,
        metrics: AgentMetrics,
        ack_of: Callable[[str], Ack | None],
        envoy_is_up: Callable[[], bool],
    ) -> None:
        self._admin, self._translate, self._policies = admin, translate, policies
        self._feedback, self._metrics = feedback, metrics
        self._ack_of, self._envoy_is_up = ack_of, envoy_is_up
        self._counters = Monotone()
        self._known: dict[str, Known | None] = {}
        self._arm_series: dict[PolicyKey, list[str]] = {}  # of outcomes and slow answers
        self._tokens: dict[str, float] = {}  # what of each series is paid
        self._costs = Families()
        self._zeros: dict[PolicyKey, tuple[Traffic, Families]] = {}
        self._lock = asyncio.Lock()
        self._read_at = float("-inf")
        self.counts = CountBook()

    # --- Envoy --------------------------------------------------------------------------------------------------------
    async def _read(self, pattern: str) -> None:
        text = await self._admin.prometheus(pattern)
        for series in self._counters.read(text, asyncio.get_running_loop().time(), PREFIX, self._is_kept):
            self._understand(series)

    def _is_kept(self, series: str) -> bool:
        known = self._known.get(series)
        return known is not None and known.policy in self._policies.records

    def _understand(self, series: str) -> Known | None:
        if series in self._known:
            return self._known[series]
        name, labels = split(series)
        sample = self._translate(name, labels)
        known = None
        if sample is not None:
            policy = (sample.labels.get("namespace", ""), sample.labels.get("policy", ""))
            known = Known(sample, label_text(sample.labels), policy)
            if sample.family in (OUTCOMES, SLOW):
                self._arm_series.setdefault(policy, []).append(series)
        self._known[series] = known
        return known

    def _pay(self, series: str, known: Known, value: float) -> None:
        """Tokens counted since last time, at the price of now."""
        record = self._policies.records.get(known.policy)
        if record is None or record.traffic is None:
            return
        more = value - self._tokens.get(series, 0.0)
        if more <= 0:
            return
        self._tokens[series] = value
        labels, traffic = known.sample.labels, record.traffic
        kind, candidate = labels["kind"], labels["candidate"]
        shared = {key: labels[key] for key in ("namespace", "policy", "revision", "arm")}
        price, baseline = price_of(traffic, candidate), price_of(traffic, traffic.stable.baseline)
        if known.sample.family == REPLICATE_TOKENS:
            if price:
                text = label_text({**shared, "replicate": labels["replicate"]})
                self._costs.add(REPLICATE_COST, text, dollars(price, kind, more))
            return
        if price:
            self._costs.add(COST, label_text({**shared, "candidate": candidate}), dollars(price, kind, more))
        if baseline:
            self._costs.add(BASELINE_COST, label_text(shared), dollars(baseline, kind, more))

    # --- /metrics -----------------------------------------------------------------------------------------------------
    async def render(self) -> str:
        async with self._lock:
            loop = asyncio.get_running_loop()
            if loop.time() - self._read_at > FRESH:
                try:
                    await self._read(ALL)
                    self._read_at = loop.time()
                except GatewayUnavailable as exc:
                    log.warning("metrics are those of the last reading: %s", exc)
            self._feedback.settle(loop.time())
            return self._families().render() + self._metrics.render()

    def _families(self) -> Families:
        families = Families()
        for key, record in self._policies.records.items():
            if (traffic := record.traffic) is not None and traffic.is_measured:
                self._add_all(families, self._zeros_of(key, traffic))
        for series, value in self._counters.values.items():
            known = self._understand(series)
            if known is None:
                continue
            if known.sample.family in (TOKENS, REPLICATE_TOKENS):
                self._pay(series, known, value)
            if known.sample.family != REPLICATE_TOKENS:
                families.add(known.sample.family, known.text, value * known.sample.factor)
        self._add_all(families, self._costs)
        self._add_feedback(families)
        self._add_policies(families)
        return families

    def _zeros_of(self, key: PolicyKey, traffic: Traffic) -> Families:
        cached = self._zeros.get(key)
        if cached is None or cached[0] is not traffic:
            cached = self._zeros[key] = (traffic, zeros(key, traffic))
        return cached[1]

    @staticmethod
    def _add_all(families: Families, more: Families) -> None:
        for name, samples in more.samples.items():
            for text, value in samples.items():
                families.add(name, text, value)

    def _add_feedback(self, families: Families) -> None:
        names = ("namespace", "policy", "revision", "arm", "candidate")
        for (labels, kind), count in self._feedback.kinds.items():
            families.add(
                "funicular_feedback_total", label_text({**dict(zip(names, labels, strict=True)), "kind": kind}), count
            )
        for (labels, replicate, kind), count in self._feedback.replicates.items():
            record = self._policies.records.get((labels[0], labels[1]))
            traffic = record.traffic if record else None
            if traffic is None or not traffic.is_measured or traffic.compared.revision != labels[2]:
                continue
            shared = dict(zip(names[:4], labels[:4], strict=True))
            text = label_text({**shared, "replicate": str(replicate), "kind": kind})
            families.add("funicular_replicate_feedback_total", text, count)
        for labels, (total, votes) in self._feedback.ratings.items():
            text = label_text(dict(zip(names, labels, strict=True)))
            families.add("funicular_rating_sum", text, total)
            families.add("funicular_rating_count", text, votes)

    def _add_policies(self, families: Families) -> None:
        errors = 0
        for (namespace, name), record in self._policies.records.items():
            ack = self._ack_of(record.uid)
            if ack is None:
                continue
            errors += ack.error is not None
            text = label_text({"namespace": namespace, "policy": name})
            families.add("funicular_agent_traffic_version", text, ack.version)
            if ack.error is None and record.traffic is not None and record.traffic.version == ack.version:
                families.add("funicular_agent_share", text, record.traffic.share.desired)
        self._metrics.policies.set(len(self._policies.records))
        self._metrics.rejected.set(errors)
        self._metrics.envoy_up.set(self._envoy_is_up())

    # --- counts for the operator --------------------------------------------------------------------------------------
    def has_ramps(self) -> bool:
        return any(is_ramping(record) for record in self._policies.records.values())

    def _totals(self, record: Record) -> dict[Cell, float]:
        """By arm and replicate, of the revision that is compared: requests, bad ones, those over the largest bound."""
        traffic = record.traffic
        if traffic is None:
            return {}
        bounds = traffic.latency_bounds
        slowest = max(bounds, key=lambda name: seconds(bounds[name]), default=None)
        totals: dict[Cell, float] = {}
        for series in self._arm_series.get(record.key, ()):
            known, value = self._known[series], self._counters.values.get(series)
            if known is None or value is None:
                continue
            labels = known.sample.labels
            if labels["revision"] != traffic.compared.revision or not labels["replicate"].isdigit():
                continue
            arm, replicate = labels["arm"], int(labels["replicate"])
            if known.sample.family == OUTCOMES:
                totals[arm, replicate, "n"] = totals.get((arm, replicate, "n"), 0.0) + value
                if labels["outcome"] == "bad":
                    totals[arm, replicate, "bad"] = totals.get((arm, replicate, "bad"), 0.0) + value
            elif labels["indicator"] == slowest:
                totals[arm, replicate, "slow"] = totals.get((arm, replicate, "slow"), 0.0) + value
        return totals

    async def begin(self, keys: set[PolicyKey]) -> None:
        """The shares of these policies' versions are in force: their counts begin here. Empties `keys`."""
        async with self._lock:
            if not keys:
                return  # an earlier call took them along
            try:
                await self._read(ARM_COUNTS)
            except GatewayUnavailable:
                return
            for key in keys:
                record = self._policies.records.get(key)
                if record is not None and (traffic := record.traffic) is not None:
                    self.counts.begin(record.uid, traffic.version, traffic.compared.revision, self._totals(record))
            keys.clear()

    async def report(self, full: bool) -> dict[str, Counts]:
        ramping = [record for record in self._policies.records.values() if is_ramping(record)]
        self.counts.keep(record.uid for record in ramping)
        if full:
            self.counts.forget_sent()
        found: dict[str, Counts] = {}
        if not ramping:
            return found
        async with self._lock:
            await self._read(ARM_COUNTS)
        for record in ramping:
            if (counts := self.counts.changed(record.uid, self._totals(record))) is not None:
                found[record.uid] = counts
        return found


def is_ramping(record: Record) -> bool:
    return record.traffic is not None and record.traffic.candidate is not None
