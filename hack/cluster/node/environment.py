"""What a container's process is started with: environment, arguments, and mounted paths turned into local ones.

Called by `containers.py`. Pure: it gets objects and returns strings. It must not know processes or the API server.
"""

from __future__ import annotations

import base64
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

Object = dict[str, Any]

Lookup = Callable[[str, str], Object | None]
"""`lookup("secrets" or "configmaps", name)` in the pod's namespace; None if there is no such object."""


class ConfigMissing(Exception):
    """The container names a Secret, ConfigMap, key or field that does not exist (yet)."""


@dataclass(frozen=True, slots=True)
class PodFacts:
    """What the downward API can tell."""

    pod: Object
    ip: str
    host_ip: str = "127.0.0.1"

    def field(self, path: str) -> str:
        """Value of a `fieldRef`; raises ConfigMissing for a path that kubelet would refuse too."""
        metadata, spec = self.pod["metadata"], self.pod["spec"]
        if match := re.fullmatch(r"metadata\.(labels|annotations)\['(.+)'\]", path):
            return str((metadata.get(match[1]) or {}).get(match[2], ""))
        simple = {
            "metadata.name": metadata["name"],
            "metadata.namespace": metadata["namespace"],
            "metadata.uid": metadata["uid"],
            "metadata.labels": _lines(metadata.get("labels")),
            "metadata.annotations": _lines(metadata.get("annotations")),
            "spec.nodeName": spec.get("nodeName", ""),
            "spec.serviceAccountName": spec.get("serviceAccountName", "default"),
            "status.podIP": self.ip,
            "status.podIPs": self.ip,
            "status.hostIP": self.host_ip,
            "status.hostIPs": self.host_ip,
        }
        if path not in simple:
            raise ConfigMissing(f"fieldRef {path} is not supported")
        return str(simple[path])


def _lines(values: Mapping[str, str] | None) -> str:
    """Labels or annotations as a downward API file shows them."""
    return "\n".join(f'{key}="{value}"' for key, value in sorted((values or {}).items()))


class PathRewriter:
    """Replaces mounted paths by local ones in any string that has one as a path prefix.

    `--config=/etc/app/x.yaml`, `file:///etc/app/x`, `/etc/app` and `a:/etc/app:b` are rewritten for a mount at
    `/etc/app`; `/etc/application` and `/opt/etc/app` are not. The longest mount wins.
    """

    def __init__(self, mounts: Mapping[str, str]) -> None:
        self._mounts = {path.rstrip("/") or "/": local for path, local in mounts.items()}
        paths = sorted((re.escape(path) for path in self._mounts if path != "/"), key=len, reverse=True)
        self._pattern = re.compile(rf"(?:(?<=://)|(?<![\w./~-]))({'|'.join(paths)})(?![\w.-])") if paths else None

    def __call__(self, text: str) -> str:
        if self._pattern is None:
            return text
        return self._pattern.sub(lambda match: self._mounts[match[1]], text)


def expand(text: str, variables: Mapping[str, str]) -> str:
    """Kubernetes' `$(NAME)`: unknown names stay as they are, `$$` is one `$`."""

    def replacement(match: re.Match[str]) -> str:
        if match[0] == "$$":
            return "$"
        return variables.get(match[1], match[0])

    return re.sub(r"\$\$|\$\(([^)]+)\)", replacement, text)


def container_environment(
    container: Object, facts: PodFacts, lookup: Lookup, rewrite: Callable[[str], str]
) -> dict[str, str]:
    """`envFrom` and `env` of one container, in order, with references resolved and paths rewritten."""
    variables: dict[str, str] = {}
    for source in container.get("envFrom") or ():
        variables |= _whole_object(source, lookup)
    for entry in container.get("env") or ():
        value = _value(entry, container, facts, lookup, variables)
        if value is not None:
            variables[entry["name"]] = value
    return {name: rewrite(value) for name, value in variables.items()}


def command_line(
    container: Object,
    entrypoint: Sequence[str],
    programs: Mapping[str, Sequence[str]],
    variables: Mapping[str, str],
    rewrite: Callable[[str], str],
) -> list[str]:
    """`command` replaces the image's entrypoint, `args` are appended; only what the Pod says is rewritten."""
    own = [rewrite(expand(word, variables)) for word in container.get("command") or ()]
    arguments = [rewrite(expand(word, variables)) for word in container.get("args") or ()]
    if not own:
        return [*(expand(word, variables) for word in entrypoint), *arguments]
    if own[0] in programs:
        own[:1] = [expand(word, variables) for word in programs[own[0]]]
    return own + arguments


def _whole_object(source: Object, lookup: Lookup) -> dict[str, str]:
    prefix = source.get("prefix", "")
    for field, kind in (("secretRef", "secrets"), ("configMapRef", "configmaps")):
        if reference := source.get(field):
            found = lookup(kind, reference["name"])
            if found is None:
                if reference.get("optional"):
                    return {}
                raise ConfigMissing(f'{kind.rstrip("s")} "{reference["name"]}" not found')
            return {prefix + key: value.decode(errors="replace") for key, value in contents(kind, found).items()}
    return {}


def _value(
    entry: Object, container: Object, facts: PodFacts, lookup: Lookup, variables: Mapping[str, str]
) -> str | None:
    source = entry.get("valueFrom")
    if not source:
        return expand(entry.get("value", ""), variables)
    if field := source.get("fieldRef"):
        return facts.field(field["fieldPath"])
    if resource := source.get("resourceFieldRef"):
        return resource_field(container, resource)
    for name, kind in (("secretKeyRef", "secrets"), ("configMapKeyRef", "configmaps")):
        if reference := source.get(name):
            return _key_of(kind, reference, lookup)
    raise ConfigMissing(f"env {entry['name']}: unsupported valueFrom {', '.join(source)}")


def _key_of(kind: str, reference: Object, lookup: Lookup) -> str | None:
    found = lookup(kind, reference["name"])
    values = {} if found is None else contents(kind, found)
    if reference["key"] in values:
        return values[reference["key"]].decode(errors="replace")
    if reference.get("optional"):
        return None
    if found is None:
        raise ConfigMissing(f'{kind.rstrip("s")} "{reference["name"]}" not found')
    raise ConfigMissing(f"couldn't find key {reference['key']} in {kind.rstrip('s')} {reference['name']}")


def contents(kind: str, item: Object) -> dict[str, bytes]:
    """The keys of a Secret or ConfigMap as bytes."""
    if kind == "secrets":
        return {key: base64.b64decode(value) for key, value in (item.get("data") or {}).items()}
    plain = {key: value.encode() for key, value in (item.get("data") or {}).items()}
    return plain | {key: base64.b64decode(value) for key, value in (item.get("binaryData") or {}).items()}


_UNITS = {
    "": Decimal(1), "m": Decimal("0.001"), "k": Decimal(10**3), "M": Decimal(10**6), "G": Decimal(10**9),
    "Ki": Decimal(2**10), "Mi": Decimal(2**20), "Gi": Decimal(2**30), "Ti": Decimal(2**40),
}  # fmt: skip


def quantity(text: str) -> Decimal:
    """A Kubernetes quantity as a number: `500m` is 0.5, `1Gi` 1073741824."""
    match = re.fullmatch(r"([0-9.]+)([A-Za-z]*)", text)
    if match is None or match[2] not in _UNITS:
        raise ConfigMissing(f"quantity {text} is not supported")
    return Decimal(match[1]) * _UNITS[match[2]]


def resource_field(container: Object, reference: Object) -> str:
    """A `resourceFieldRef`, rounded up to whole divisors as kubelet does; an unset limit counts as 1 CPU or 1 GiB."""
    group, _, resource = reference["resource"].partition(".")
    configured = ((container.get("resources") or {}).get(group) or {}).get(resource)
    amount = quantity(configured or ("1" if resource == "cpu" else "1Gi"))
    divisor = reference.get("divisor") or "1"
    return str(math.ceil(amount / quantity("1" if divisor == "0" else divisor)))
