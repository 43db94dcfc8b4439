"""Which arm and which hash replicate an assignment unit belongs to: the same as Envoy computes, for tests and simulation.

Envoy splits with the matcher `runtime_fraction`: xxh64(unit, seed) % 10000 < numerator. Seeds are derived from names, so
that no two policies, and no two ramps of one policy, treat the same users first. 0001 is the contract.
"""

from __future__ import annotations

import hashlib
from enum import StrEnum

import xxhash

from funicular.api.traffic import WHOLE, Traffic

REPLICATES = 64
# No arm uses it, so replicates are independent of arms. lua/downstream.lua has it too.
REPLICATE_SEED = 0x66756E6963756C61


class Arm(StrEnum):
    TREATMENT = "treatment"
    CONTROL = "control"
    HOLDBACK = "holdback"


def _seed(*parts: str) -> int:
    """63 bits: below the sign, whatever integer type a reader of the JSON uses."""
    return int.from_bytes(hashlib.sha256("\0".join(parts).encode()).digest()[:8], "big") >> 1


def holdback_seed(namespace: str, policy: str, salt: str) -> int:
    """The policy's own: the same users are held back in every ramp."""
    return _seed("holdback", namespace, policy, salt)


def share_seed(namespace: str, policy: str, revision: str) -> int:
    """The revision's own: not always the same users go first."""
    return _seed("share", namespace, policy, revision)


def _hash(unit: str | bytes, seed: int) -> int:
    return xxhash.xxh64_intdigest(unit if isinstance(unit, bytes) else unit.encode("utf-8", "surrogatepass"), seed=seed)


def replicate_of(unit: str | bytes) -> int:
    """0-63. A str is hashed as UTF-8."""
    return _hash(unit, REPLICATE_SEED) % REPLICATES


def is_within(unit: str | bytes, seed: int, basis_points: int) -> bool:
    """Envoy's `runtime_fraction`; monotone in basis_points, nobody at 0, everybody at 10000."""
    return _hash(unit, seed) % WHOLE < basis_points


def arm_of(unit: str | bytes | None, namespace: str, policy: str, traffic: Traffic, share: int | None = None) -> Arm:
    """The arm at `share` basis points (default: traffic.share.desired). No unit: control."""
    if not unit:
        return Arm.CONTROL
    if traffic.is_measured and is_within(unit, holdback_seed(namespace, policy, traffic.salt), traffic.holdback):
        return Arm.HOLDBACK
    if traffic.candidate is not None:
        points = traffic.share.desired if share is None else share
        if is_within(unit, share_seed(namespace, policy, traffic.candidate.revision), points):
            return Arm.TREATMENT
    return Arm.CONTROL
