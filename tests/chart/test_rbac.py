"""Who may do what: the rules that the chart renders are these, and nothing else. A new right needs a reason here."""

from __future__ import annotations

from typing import Any

import pytest

from hack import chart
from tests.chart.conftest import rendered

Json = dict[str, Any]
Rule = tuple[str, str, str]  # resources, verbs, names

OPERATOR: dict[Rule, str] = {
    (
        "routing.funicular.dev/routingpolicies",
        "get list watch patch",
        "",
    ): "reconciles them; patches finalizer and reverts",
    ("routing.funicular.dev/routingpolicies/status", "patch", ""): "the traffic that gateways obey, and its report",
    ("routing.funicular.dev/routingpolicies/finalizers", "update", ""): "owns objects with blockOwnerDeletion",
    ("apps/deployments", "get list watch create patch delete", ""): "classifiers",
    ("/services", "get list create patch delete", ""): "classifiers",
    ("apps/controllerrevisions", "get list create delete", ""): "good specs, for a revert",
    ("/pods", "get list watch", ""): "gateways that must confirm; why a classifier is not ready",
    ("events.k8s.io/events", "create patch", ""): "tells what it did",
}
OPERATOR_SECRETS: dict[Rule, str] = {
    ("/secrets /configmaps", "get", ""): "is a provider's key there; what lets it in to Prometheus",
}
OPERATOR_TOKENS: dict[Rule, str] = {
    ("authentication.k8s.io/tokenreviews", "create", ""): "does a report come from the pod that it names",
}
OPERATOR_LEASE: dict[Rule, str] = {
    ("coordination.k8s.io/leases", "create", ""): "the first operator makes the Lease; a name cannot be asked for",
    ("coordination.k8s.io/leases", "get update", "funicular-operator"): "leads, and says where it takes reports",
}
AGENT: dict[Rule, str] = {
    ("routing.funicular.dev/routingpolicies", "get list watch", ""): "compiles their traffic",
}
AGENT_LEASE: dict[Rule, str] = {
    ("coordination.k8s.io/leases", "get list watch", "funicular-operator"): "finds the leading operator",
}
SMOKE_POLICIES: dict[Rule, str] = {
    ("routing.funicular.dev/routingpolicies", "list", ""): "does the cluster know the kind",
}
SMOKE_LEASE: dict[Rule, str] = {("coordination.k8s.io/leases", "get", "funicular-operator"): "does an operator lead"}
UNINSTALL: dict[Rule, str] = {
    ("routing.funicular.dev/routingpolicies", "get list patch", ""): "asks for an abort by annotation, sees the answer",
}
VIEW: dict[Rule, str] = {
    (
        "routing.funicular.dev/routingpolicies routing.funicular.dev/routingpolicies/status",
        "get list watch",
        "",
    ): "view",
}
EDIT: dict[Rule, str] = {
    ("routing.funicular.dev/routingpolicies", "create update patch delete deletecollection", ""): "edit, no status",
}
DEFAULTS: dict[tuple[str, str], dict[Rule, str]] = {
    ("ClusterRole", "funicular:funicular-operator"): OPERATOR,
    ("ClusterRole", "funicular:funicular-operator-secrets"): OPERATOR_SECRETS,
    ("ClusterRole", "funicular:funicular-operator-tokens"): OPERATOR_TOKENS,
    ("Role", "funicular-operator-lease"): OPERATOR_LEASE,
    ("Role", "funicular:funicular-gateway"): AGENT,
    ("Role", "funicular:funicular-gateway-lease"): AGENT_LEASE,
    ("Role", "funicular-smoke-policies"): SMOKE_POLICIES,
    ("Role", "funicular-smoke-lease"): SMOKE_LEASE,
    ("ClusterRole", "funicular:funicular-uninstall"): UNINSTALL,
    ("ClusterRole", "funicular-policies-view"): VIEW,
    ("ClusterRole", "funicular-policies-edit"): EDIT,
}
READS = {"get", "list", "watch"}


def rules_of(role: Json) -> set[Rule]:
    return {
        (
            " ".join(f"{group}/{resource}" for group in rule["apiGroups"] for resource in rule["resources"]),
            " ".join(rule["verbs"]),
            " ".join(rule.get("resourceNames", ())),
        )
        for rule in role["rules"]
    }


def of_kind(objects: tuple[Json, ...], *kinds: str) -> list[Json]:
    return [it for it in objects if it["kind"] in kinds]


def granted(objects: tuple[Json, ...], account: str) -> dict[str, set[Rule]]:
    """What an account may do, by namespace; `*`: the whole cluster."""
    roles = {(it["kind"], it["metadata"].get("namespace", ""), it["metadata"]["name"]): it for it in objects}
    found: dict[str, set[Rule]] = {}
    for binding in of_kind(objects, "RoleBinding", "ClusterRoleBinding"):
        if account not in [subject["name"] for subject in binding["subjects"]]:
            continue
        assert all(subject["namespace"] == chart.NAMESPACE for subject in binding["subjects"])
        namespace = binding["metadata"].get("namespace", "")
        reference = binding["roleRef"]
        role = roles[reference["kind"], namespace if reference["kind"] == "Role" else "", reference["name"]]
        found.setdefault(namespace or "*", set()).update(rules_of(role))
    return found


def secrets_of(rights: dict[str, set[Rule]]) -> dict[str, set[str]]:
    """Names of Secrets that may be read, by namespace; `*`: all."""
    return {
        namespace: {
            name for resources, _, names in rules if "/secrets" in resources.split() for name in (names or "*").split()
        }
        for namespace, rules in rights.items()
        if any("/secrets" in resources.split() for resources, _, _ in rules)
    }


def test_the_rules_are_these() -> None:
    roles = of_kind(rendered("the defaults"), "Role", "ClusterRole")
    assert {(it["kind"], it["metadata"]["name"]): rules_of(it) for it in roles} == {
        at: set(rules) for at, rules in DEFAULTS.items()
    }


def test_no_rule_is_for_everything(objects: tuple[Json, ...]) -> None:
    for role in of_kind(objects, "Role", "ClusterRole"):
        for rule in role["rules"]:
            assert "*" not in [*rule["verbs"], *rule["resources"], *rule["apiGroups"]], role["metadata"]["name"]
            assert not {"escalate", "bind", "impersonate"} & set(rule["verbs"])


def test_the_agent_writes_nothing(objects: tuple[Json, ...]) -> None:
    for name in ("funicular-gateway", "team-gateway", "fun-gateway"):
        for rules in granted(objects, name).values():
            assert all(set(verbs.split()) <= READS for _, verbs, _ in rules)


@pytest.mark.parametrize(
    ("values", "agent", "operator"),
    [
        pytest.param("the defaults", {}, {"funicular": {"*"}}, id="none, and those of the release's namespace"),
        pytest.param(
            "gateways for several namespaces",
            {"funicular": {"openai"}, "team-a": {"openai", "vllm"}},
            {"funicular": {"*"}, "team-a": {"*"}, "team-b": {"*"}},
            id="the named ones",
        ),
        pytest.param(
            "gateways for all namespaces", {"team-a": {"key"}}, {"*": {"*"}}, id="the named ones of all namespaces"
        ),
        pytest.param("all Secrets of all namespaces", {"*": {"*"}}, {"*": {"*"}}, id="all, because it was asked for"),
        pytest.param("one namespace for all", {}, {"funicular": {"*"}, "team-a": {"*"}}, id="of one namespace"),
    ],
)
def test_secrets_that_may_be_read(values: str, agent: dict[str, set[str]], operator: dict[str, set[str]]) -> None:
    objects = rendered(values)
    assert secrets_of(granted(objects, "funicular-gateway")) == agent
    assert secrets_of(granted(objects, "funicular-operator")) == operator


def test_nobody_reads_the_clusters_secrets_unless_it_is_asked_for(objects: tuple[Json, ...]) -> None:
    asked = rendered("all Secrets of all namespaces"), rendered("gateways for all namespaces")
    if objects in asked:
        return
    bound = [it["roleRef"]["name"] for it in of_kind(objects, "ClusterRoleBinding")]
    for role in of_kind(objects, "ClusterRole"):
        if role["metadata"]["name"] in bound:
            assert not any("secrets" in rule["resources"] for rule in role["rules"])


def test_an_operator_of_named_namespaces_has_no_rights_elsewhere() -> None:
    rights = granted(rendered("one namespace for all"), "funicular-operator")
    assert set(rights) == {"*", "funicular", "team-a"}
    assert rights["*"] == set(OPERATOR_TOKENS)
    assert rights["team-a"] == set(OPERATOR) | set(OPERATOR_SECRETS)


def test_a_teams_gateway_has_its_rights_in_its_namespace_and_reads_the_lease_elsewhere() -> None:
    rights = granted(rendered("a gateway of a team's own"), "team-gateway")
    assert rights == {"funicular": set(AGENT), "platform": set(AGENT_LEASE)}


def test_without_rbac_there_is_none() -> None:
    kinds = {it["kind"] for it in rendered("no rights and no policies made")}
    assert not kinds & {"Role", "ClusterRole", "RoleBinding", "ClusterRoleBinding"}


def test_every_binding_names_a_role_and_an_account_that_are_there(objects: tuple[Json, ...]) -> None:
    accounts = {it["metadata"]["name"] for it in of_kind(objects, "ServiceAccount")}
    for binding in of_kind(objects, "RoleBinding", "ClusterRoleBinding"):
        (subject,) = binding["subjects"]
        assert subject["name"] in accounts
        granted(objects, subject["name"])
