"""Values that people may set, by name: every test that renders the chart goes through all of them."""

from __future__ import annotations

from typing import Any

SETS: dict[str, dict[str, Any]] = {
    "the defaults": {},
    "one namespace for all": {"operator": {"namespaces": ["team-a"], "replicas": 1}},
    "gateways for several namespaces": {
        "gateway": {
            "policyNamespaces": ["team-a", "team-b"],
            "credentials": {"secretNames": ["openai", "team-a/openai", "team-a/vllm"]},
        }
    },
    "gateways for all namespaces": {
        "gateway": {"policyNamespaces": ["*"], "credentials": {"secretNames": ["team-a/key"]}}
    },
    "all Secrets of all namespaces": {
        "gateway": {"policyNamespaces": ["*"], "credentials": {"allSecrets": True}},
        "operator": {"secretNamespaces": ["*"]},
    },
    "a gateway of a team's own": {
        "operator": {"enabled": False},
        "crds": {"install": False},
        "rbac": {"aggregateClusterRoles": False},
        "gateway": {"operatorNamespace": "platform", "name": "team-gateway"},
    },
    "an operator alone": {"gateway": {"enabled": False}, "operator": {"gatewayNamespaces": ["team-a"]}},
    "no rights and no policies made": {"rbac": {"create": False}, "networkPolicy": {"enabled": False}},
    "scaled, spread, exposed": {
        "gateway": {
            "autoscaling": {"enabled": True, "maxReplicas": 20},
            "service": {
                "type": "LoadBalancer",
                "port": 80,
                "externalTrafficPolicy": "Local",
                "annotations": {"a": "b"},
            },
            "topologySpreadConstraints": [
                {"maxSkew": 1, "topologyKey": "rack", "whenUnsatisfiable": "DoNotSchedule"},
            ],
            "nodeSelector": {"pool": "gateways"},
            "tolerations": [{"key": "gateways", "operator": "Exists", "effect": "NoSchedule"}],
            "affinity": {"podAntiAffinity": {}},
            "priorityClassName": "system-cluster-critical",
            "envoy": {"concurrency": 4, "image": {"digest": "sha256:" + "a" * 64}},
            "caBundle": {"configMapName": "authorities"},
            "dnsResolver": "10.0.0.10:53",
            "podLabels": {"tier": "front"},
            "podAnnotations": {"note": "x"},
            "drainSeconds": 300,
        },
        "networkPolicy": {
            "gatewayFrom": [{"namespaceSelector": {"matchLabels": {"apps": "yes"}}}],
            "metricsFrom": [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}}],
            "gatewayEgress": [{"to": [{"ipBlock": {"cidr": "0.0.0.0/0", "except": ["169.254.0.0/16"]}}]}],
        },
        "operator": {"prometheusTokensSecret": "tokens", "extraEnv": [{"name": "FUNICULAR_WORKERS", "value": "4"}]},
    },
    "labels, annotations, names": {
        "commonLabels": {"cost-centre": "42"},
        "commonAnnotations": {"owner": "platform"},
        "fullnameOverride": "fun",
        "imagePullSecrets": [{"name": "pull"}],
        "image": {"digest": "sha256:" + "b" * 64},
        "operator": {"serviceAccount": {"annotations": {"cloud/role": "x"}}},
    },
    "customizations for Argo CD": {
        "argocd": {"customizations": {"enabled": True, "progressingWhileRamping": True, "configMapName": "for-argocd"}}
    },
    "everything for monitoring": {
        "monitoring": {
            "podMonitor": {"enabled": True, "labels": {"release": "kps"}},
            "prometheusRule": {"enabled": True},
            "dashboards": {"enabled": True},
        }
    },
}
