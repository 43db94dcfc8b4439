"""Which namespaces' policies a gateway pod serves: read by the agent from its setting, by the operator from the pod.

A pod serves its own namespace. It serves others if it says so, and the operator believes that of pods in the namespaces
that its own setting trusts alone: else a pod in one namespace could stall another's ramps by never confirming them, or
confirm what it does not serve. Pure.
"""

from __future__ import annotations

from collections.abc import Collection

from funicular.api.base import GROUP

SERVES = f"{GROUP}/serves"
"""Annotation of a gateway pod: the namespaces that it serves besides its own, comma-separated; `*`: all."""

EVERY = "*"


def named(text: str | None) -> frozenset[str]:
    """`a, b` -> {a, b}"""
    return frozenset(name.strip() for name in (text or "").split(",") if name.strip())


def served(own: str, text: str | None) -> frozenset[str]:
    """The namespaces of a gateway pod; {EVERY}: all."""
    names = named(text) | {own}
    return frozenset({EVERY}) if EVERY in names else names


def reaches(gateway: str, serves: Collection[str], policy: str, trusted: Collection[str]) -> bool:
    """Whether a pod in namespace `gateway` that says it `serves` others counts for a policy in namespace `policy`."""
    return gateway == policy or (gateway in trusted and (EVERY in serves or policy in serves))
