"""What a person declares: the `spec` of a RoutingPolicy. The one source of the CRD's schema (crd.py) and of `kubectl explain`.

Every field has a description of one sentence. What the schema cannot say, and a sentence for each pattern and bound
here, stands as CEL rules in rules.py. Lists and texts have an upper size, so that the rules have an upper cost.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, StringConstraints

from funicular.api.base import Model
from funicular.api.duration import Duration

Name = Annotated[str, StringConstraints(pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$", max_length=40)]
PORT = r"([1-9][0-9]{0,3}|[1-5][0-9]{4}|6[0-4][0-9]{3}|65[0-4][0-9]{2}|655[0-2][0-9]|6553[0-5])"
Url = Annotated[
    str,
    StringConstraints(
        pattern=rf"^https?://([A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(:{PORT})?(/[!$-.0->@-~/]*)?$", max_length=512
    ),
]
LabelValue = Annotated[str, StringConstraints(pattern=r"^([A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?)?$", max_length=63)]
HeaderName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9!#$%&'*+.^_`|~-]+$", max_length=64)]
# What goes into a header or a route of Envoy: a control character there would cost the whole gateway its configuration.
BodyMember = Annotated[str, StringConstraints(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$", max_length=64)]
ModelName = Annotated[str, StringConstraints(pattern=r"^[!#-\[\]-~]+$", max_length=256)]
HeaderText = Annotated[str, StringConstraints(pattern=r"^[ -~]*$", max_length=1024)]
Quantity = Annotated[
    str,
    StringConstraints(pattern=r"^([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]+|[numkMGTPE]|[KMGTPE]i)?$", max_length=32),
    BeforeValidator(lambda value: str(value) if isinstance(value, int) else value),  # cpu: 2
]
Percent = Annotated[float, Field(ge=0, le=100, multiple_of=0.01)]


class SecretKeyRef(Model):
    """One key of a Secret in the policy's namespace."""

    name: str = Field(min_length=1, max_length=253, description="Name of the Secret, in the policy's namespace.")
    key: str = Field(min_length=1, max_length=253, description="Key in the Secret's data.")


class ConfigMapKeyRef(Model):
    """One key of a ConfigMap in the policy's namespace."""

    name: str = Field(min_length=1, max_length=253, description="Name of the ConfigMap, in the policy's namespace.")
    key: str = Field(default="ca.crt", min_length=1, max_length=253, description="Key in the ConfigMap's data.")


class Endpoint(Model):
    """What an application calls."""

    model: ModelName = Field(
        description='What applications send as "model"; unique among the policies of a gateway, and fixed.',
    )


class LabelSelector(Model):
    """Selects pods by their labels."""

    match_labels: dict[str, Annotated[LabelValue, Field(description="Value of the label.")]] = Field(
        min_length=1, max_length=16, description="Labels that a gateway pod must carry, all of them."
    )


class Gateway(Model):
    """The gateway that serves the endpoint."""

    selector: LabelSelector = Field(
        default_factory=lambda: LabelSelector(match_labels={"app.kubernetes.io/component": "gateway"}),
        description="Which gateway pods serve this policy.",
    )


class Credentials(Model):
    """The API key of a candidate, and how it is sent."""

    secret_ref: SecretKeyRef = Field(description="The Secret's key that holds the API key.")
    header: HeaderName = Field(default="authorization", description="Request header that carries the key.")
    prefix: HeaderText = Field(
        default="Bearer ", max_length=32, description='Text before the key, for example "Bearer "; empty for x-api-key.'
    )


class Price(Model):
    """What a candidate's tokens cost."""

    input_per_million: float = Field(ge=0, description="Dollars for a million prompt tokens.")
    output_per_million: float = Field(ge=0, description="Dollars for a million completion tokens.")


class Candidate(Model):
    """One model behind an OpenAI-compatible URL."""

    name: Name = Field(description="Name of the candidate within the policy.")
    baseline: bool = Field(
        default=False, description="True for exactly one: today's production model, to which everything falls back."
    )
    url: Url = Field(description="Base URL of an OpenAI-compatible API, for example https://api.example.com/v1.")
    model: ModelName = Field(description='What is sent as "model" to this URL.')
    credentials: Credentials | None = Field(default=None, description="The API key, if the URL wants one.")
    price: Price | None = Field(
        default=None, description="Dollars per million tokens; without it, cost and savings are not counted."
    )
    timeout: Duration = Field(
        default="60s", description="Time to the first byte of the answer, after which the baseline is asked instead."
    )


class EnvVar(Model):
    """One environment variable of a container."""

    name: str = Field(min_length=1, max_length=253, description="Name of the environment variable.")
    value: str = Field(default="", max_length=4096, description="Its value.")


class Resources(Model):
    """As in a container's spec."""

    requests: dict[str, Annotated[Quantity, Field(description="An amount, for example 500m.")]] = Field(
        default_factory=dict, max_length=16, description="Guaranteed resources, for example cpu: 500m."
    )
    limits: dict[str, Annotated[Quantity, Field(description="An amount, for example 512Mi.")]] = Field(
        default_factory=dict, max_length=16, description="Upper bounds, for example memory: 512Mi."
    )


class ClassifierStrategy(Model):
    """A classifier up front: easy requests go to a cheap candidate, hard or uncertain ones to the baseline."""

    image: str | None = Field(
        default=None,
        min_length=1,
        max_length=512,
        description="Image of a classifier server that the operator runs; pin it by digest (image@sha256:...).",
    )
    url: Url | None = Field(default=None, description="URL of a classifier that runs already; instead of image.")
    threshold: float = Field(
        default=0.5, ge=0, le=1, description="Score from which the classifier may call a request easy."
    )
    timeout: Duration = Field(default="50ms", description="Longest wait for the classifier; then the baseline answers.")
    routes: dict[str, Annotated[Name, Field(description="Name of the candidate that gets this label.")]] = Field(
        min_length=1,
        max_length=16,
        description="Candidate for each label of the classifier; any other label: the baseline.",
    )
    replicas: int = Field(default=1, ge=1, le=100, description="Pods of the classifier.")
    resources: Resources = Field(
        default_factory=Resources,
        description="Resources of a classifier pod. At least 100m of CPU and 128Mi are requested.",
    )
    env: tuple[EnvVar, ...] = Field(default=(), max_length=64, description="Environment of the classifier's container.")


class SingleStrategy(Model):
    """Every treated request goes to one candidate: a model migration."""

    candidate: Name = Field(description="The candidate that answers every treated request.")


class Strategy(Model):
    """How a treated request chooses among the candidates: exactly one member is set."""

    classifier: ClassifierStrategy | None = Field(
        default=None, description="A classifier decides before the model is asked."
    )
    single: SingleStrategy | None = Field(
        default=None, description="One candidate for all: a model migration; wants a holdback and a quality SLO."
    )


class UnitSource(Model):
    """One place where the assignment unit may stand: exactly one member is set."""

    header: HeaderName | None = Field(default=None, description="Name of a request header, in lower case.")
    body: BodyMember | None = Field(
        default=None,
        description="Top-level member of the request's JSON body, for example user.",
    )
    api_key: bool | None = Field(
        default=None, description="True: the client's Authorization header (only its hash is used)."
    )


DEFAULT_UNITS = (
    UnitSource(header="x-user-id"),
    UnitSource(body="user"),
    UnitSource(header="x-session-id"),
    UnitSource(api_key=True),
)


class Assignment(Model):
    units: tuple[UnitSource, ...] = Field(
        default=DEFAULT_UNITS,
        min_length=1,
        max_length=8,
        description="Places of the assignment unit; the first that is not empty counts.",
    )
    min_duration: Duration = Field(
        default="168h", description="Shortest time from the first treated request to the promotion."
    )
    salt: str = Field(
        default="", max_length=64, description="Mixed into the hash of the holdback; change it only between ramps."
    )


class Indicator(StrEnum):
    ERROR_RATE = "ErrorRate"
    LATENCY_P50 = "LatencyP50"
    LATENCY_P95 = "LatencyP95"
    LATENCY_P99 = "LatencyP99"
    TIME_TO_FIRST_TOKEN = "TimeToFirstToken"  # noqa: S105
    THUMBS_UP_RATE = "ThumbsUpRate"
    COST_PER_REQUEST = "CostPerRequest"


LATENCY_QUANTILE = {
    Indicator.LATENCY_P50: 0.50,
    Indicator.LATENCY_P95: 0.95,
    Indicator.LATENCY_P99: 0.99,
    Indicator.TIME_TO_FIRST_TOKEN: 0.95,
}
QUALITY_INDICATORS = frozenset({Indicator.THUMBS_UP_RATE})


class Query(Model):
    """A query of one's own, with {{arm}}, {{window}}, {{policy}}, {{namespace}} and {{revision}} filled in."""

    good: str | None = Field(
        default=None, max_length=4096, description="PromQL of the count of good events; with total."
    )
    total: str | None = Field(default=None, max_length=4096, description="PromQL of the count of all events.")
    value: str | None = Field(
        default=None,
        max_length=4096,
        description="PromQL of one value, where there is no count; judged by its bound alone.",
    )


class Mode(StrEnum):
    ENFORCE = "Enforce"
    OBSERVE = "Observe"


class Slo(Model):
    """One service-level objective: an indicator or a query, and at least one bound."""

    name: Name = Field(description="Name of the SLO within the policy.")
    indicator: Indicator | None = Field(default=None, description="A built-in indicator; instead of query.")
    query: Query | None = Field(default=None, description="PromQL of one's own; instead of indicator.")
    quality: bool | None = Field(
        default=None, description="True: this SLO speaks of the answers' quality (ThumbsUpRate does by itself)."
    )
    bound: Duration | None = Field(
        default=None,
        description="For latency indicators: the time within which the percentile must stay, for example 4s.",
    )
    max: float | None = Field(
        default=None, description="Largest value allowed in the treatment arm; of latency say bound instead."
    )
    min: float | None = Field(default=None, description="Smallest value allowed in the treatment arm.")
    allowed_increase: float | None = Field(
        default=None,
        ge=0,
        description="How much higher than control the treatment may be; of latency: the share of answers over bound.",
    )
    allowed_decrease: float | None = Field(
        default=None, ge=0, description="How much lower than control the treatment may be."
    )
    allowed_from_baseline: float | None = Field(
        default=None,
        ge=0,
        description="How much worse than the holdback (always the baseline model) the treatment may be.",
    )
    min_samples: int | None = Field(
        default=None, ge=1, description="Samples for this SLO, where they are rarer than requests; default: the step's."
    )
    mode: Mode = Field(
        default=Mode.ENFORCE, description="Enforce: gates the ramp and reverts it; Observe: only reported."
    )


class Approval(StrEnum):
    NONE = "None"
    REQUIRED = "Required"


class Step(Model):
    """One rung of the ramp."""

    share: Percent = Field(gt=0, description="Per cent of the assignment units outside the holdback that are treated.")
    min_duration: Duration = Field(default="0s", description="Shortest time at this share.")
    min_samples: int = Field(default=300, ge=1, description="Least treated requests at this share.")
    max_duration: Duration | None = Field(
        default=None, description="After this time without a verdict, onInconclusive decides; default: never."
    )
    approval: Approval = Field(
        default=Approval.NONE,
        description="Required: a person must approve before the next step; at the last step: before the promotion.",
    )
    bake: Duration = Field(
        default="0s", description="For the last step: how long it stays under test before it is promoted."
    )


class OnInconclusive(StrEnum):
    HOLD = "Hold"
    REVERT = "Revert"


class OnRegression(StrEnum):
    AUTO = "Auto"
    REVERT_SPEC = "RevertSpec"
    HOLD_SPEC = "HoldSpec"


DEFAULT_STEPS = (
    Step(share=1, min_duration="24h", min_samples=300),
    Step(share=10, min_duration="48h", min_samples=1000),
    Step(share=50, min_duration="96h", min_samples=3000),
    Step(share=100, bake="24h"),
)


class Rollout(Model):
    """How the share of a new revision rises, and what happens when it must not."""

    steps: tuple[Step, ...] = Field(
        default=DEFAULT_STEPS, min_length=1, max_length=20, description="The rungs of the ramp, rising to 100."
    )
    holdback: Percent = Field(
        default=1.0,
        le=50,
        description="Per cent of the units that always get the baseline model: shows drift and savings.",
    )
    on_inconclusive: OnInconclusive = Field(
        default=OnInconclusive.HOLD, description="After a step's maxDuration without a verdict: Hold or Revert."
    )
    on_regression: OnRegression = Field(
        default=OnRegression.AUTO,
        description="What becomes of the spec: RevertSpec, HoldSpec, or Auto (HoldSpec if git manages the object).",
    )
    false_revert_rate: float = Field(
        default=0.01, ge=0.001, lt=0.5, description="Chance over the whole rollout that a good candidate is reverted."
    )
    false_promotion_rate: float = Field(
        default=0.05, gt=0, lt=0.5, description="Chance that a candidate worse by its margin passes an SLO."
    )


class BearerAuth(Model):
    """A bearer token: exactly one member is set."""

    secret_ref: SecretKeyRef | None = Field(default=None, description="Secret's key with the token.")
    file: str | None = Field(
        default=None,
        max_length=512,
        description="File in the operator's container with the token, read anew at each change.",
    )


class BasicAuth(Model):
    """User name and password."""

    username: SecretKeyRef = Field(description="Secret's key with the user name.")
    password: SecretKeyRef = Field(description="Secret's key with the password.")


class OAuth2(Model):
    """OAuth2 client credentials."""

    token_url: Url = Field(description="Where client credentials are exchanged for a token.")
    client_id: SecretKeyRef = Field(description="Secret's key with the client id.")
    client_secret: SecretKeyRef = Field(description="Secret's key with the client secret.")
    scopes: tuple[Annotated[str, Field(max_length=256, description="A scope.")], ...] = Field(
        default=(), max_length=32, description="Scopes to ask for."
    )


class PrometheusAuth(Model):
    """At most one member is set."""

    bearer: BearerAuth | None = Field(default=None, description="A bearer token.")
    basic: BasicAuth | None = Field(default=None, description="User name and password.")
    oauth2: OAuth2 | None = Field(default=None, description="OAuth2 client credentials.")


class PrometheusTls(Model):
    """Certificates for the connection to Prometheus."""

    ca_ref: ConfigMapKeyRef | None = Field(
        default=None, description="ConfigMap's key with the CA that signed Prometheus's certificate."
    )
    ca_secret_ref: SecretKeyRef | None = Field(default=None, description="Secret's key with that CA; instead of caRef.")
    cert_ref: SecretKeyRef | None = Field(
        default=None, description="Secret's key with the client certificate (PEM), for mTLS."
    )
    key_ref: SecretKeyRef | None = Field(
        default=None, description="Secret's key with the client's private key (PEM), for mTLS."
    )
    server_name: str | None = Field(
        default=None, max_length=253, description="Name to expect in the certificate, if not the URL's host."
    )
    insecure_skip_verify: bool = Field(default=False, description="True: accept any certificate; for tests only.")


class PrometheusHeader(Model):
    """One extra request header: exactly one of value and secretRef is set."""

    name: HeaderName = Field(description="Name of the header, for example x-scope-orgid.")
    value: HeaderText | None = Field(default=None, description="Its value.")
    secret_ref: SecretKeyRef | None = Field(default=None, description="Secret's key with the value; instead of value.")


class Prometheus(Model):
    """The Prometheus (or Thanos, Mimir, VictoriaMetrics) that scrapes the gateway pods."""

    url: Url = Field(description="Base URL, a path prefix as of Thanos or Mimir included.")
    auth: PrometheusAuth | None = Field(default=None, description="How to authenticate.")
    tls: PrometheusTls | None = Field(default=None, description="Certificates.")
    headers: tuple[PrometheusHeader, ...] = Field(default=(), max_length=16, description="Extra request headers.")
    timeout: Duration = Field(default="10s", description="Longest wait for an answer.")
    interval: Duration = Field(
        default="15s", description="How often the SLOs are looked at while a ramp runs; the scrape interval or longer."
    )


class RoutingPolicySpec(Model):
    """One LLM endpoint: who may answer it, how a request chooses, and what must hold while more users get the cheaper route."""

    endpoint: Endpoint = Field(description="The endpoint of the application.")
    gateway: Gateway = Field(default_factory=Gateway, description="The gateway pods that serve it.")
    candidates: tuple[Candidate, ...] = Field(
        min_length=1, max_length=16, description="The models; exactly one is the baseline."
    )
    strategy: Strategy = Field(description="How a treated request chooses among the candidates.")
    assignment: Assignment = Field(
        default_factory=Assignment, description="Who stays in one arm together, and for how long."
    )
    slos: tuple[Slo, ...] = Field(
        default=(), max_length=16, description="What must hold; without an enforced SLO nothing is promoted by itself."
    )
    rollout: Rollout = Field(default_factory=Rollout, description="The ramp.")
    prometheus: Prometheus = Field(description="Where the SLOs are measured.")

    @property
    def baseline(self) -> Candidate:
        return next(c for c in self.candidates if c.baseline)


def schema_free(value: Any) -> Any:
    """A spec as the plain JSON that the API server stores: by alias, without what was not set."""
    return value.model_dump(mode="json", by_alias=True, exclude_none=True)
