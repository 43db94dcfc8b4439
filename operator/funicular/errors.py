"""Every exception of ours, named by what the caller should do.

FunicularError
├── RetryLater           the world is not ready; the same call may go through later
│   ├── ApiUnavailable       Kubernetes API: refused, timed out, 429, 5xx
│   ├── Conflict             a newer object exists (409); drop this write, a fresh event follows
│   ├── MetricsUnavailable   Prometheus: refused, timed out, 429, 5xx
│   └── GatewayUnavailable   Envoy's admin interface or the operator's report address does not answer
├── UserMustFix          a person has to change something; `field` and `remedy` say what
│   ├── InvalidPolicy        a spec that the API server let through but that cannot be honoured
│   ├── InvalidQuery         PromQL that does not parse, or answers in an unusable shape
│   ├── AccessDenied         401 or 403 from Prometheus or the Kubernetes API
│   └── SecretMissing        a Secret or one of its keys does not exist
├── NotFound             the object is gone (404)
└── OurBug               an invariant of this program is broken
"""

from __future__ import annotations


class FunicularError(Exception):
    """The root of the tree above."""


class RetryLater(FunicularError):
    """The same call may go through later."""


class ApiUnavailable(RetryLater):
    """The Kubernetes API refused, timed out, or answered 429 or 5xx."""


class Conflict(RetryLater):
    """The Kubernetes API answered 409: a newer object exists."""


class MetricsUnavailable(RetryLater):
    """Prometheus refused, timed out, or answered 429 or 5xx."""


class GatewayUnavailable(RetryLater):
    """Envoy's admin interface or the operator's report address does not answer."""


class UserMustFix(FunicularError):
    """A person has to change something. `field` is the path in the resource, `remedy` a sentence."""

    def __init__(self, message: str, *, field: str = "", remedy: str = "") -> None:
        super().__init__(message)
        self.field = field
        self.remedy = remedy


class InvalidPolicy(UserMustFix):
    """A spec that the API server let through but that cannot be honoured."""


class InvalidQuery(UserMustFix):
    """PromQL that does not parse, or answers in an unusable shape."""


class AccessDenied(UserMustFix):
    """401 or 403 from Prometheus or the Kubernetes API."""


class SecretMissing(UserMustFix):
    """A Secret or one of its keys does not exist."""


class NotFound(FunicularError):
    """The Kubernetes API answered 404."""


class OurBug(FunicularError):
    """An invariant of this program is broken."""
