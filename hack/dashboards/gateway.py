"""The health dashboard: the gateways' traffic, Envoy, the agents, and the operator itself.

Called by the package's `boards`. Panels by pod need the label `pod`, which scrapers of Kubernetes set.
"""

from __future__ import annotations

from grafana_foundation_sdk.models.dashboard import Dashboard

from hack.dashboards.panels import PODS, POLICY, Query, Row, board, lines, number

NAME = "{{namespace}}/{{policy}}"
RATE = "$__rate_interval"
GATEWAY = f'{PODS}, envoy_http_conn_manager_prefix="gateway"'


def requests(by: str, labels: str = "") -> str:
    selector = f"{POLICY}, {labels}" if labels else POLICY
    return f"sum by ({by}) (rate(funicular_requests_total{{{selector}}}[{RATE}]))"


def by_pod(metric: str, selector: str = PODS, over: str = "") -> str:
    inner = f"{over}({metric}{{{selector}}}[{RATE}])" if over else f"{metric}{{{selector}}}"
    return f"sum by (pod) ({inner})"


def quantile(q: float, metric: str, selector: str = POLICY, by: str = "le", window: str = RATE) -> str:
    return f"histogram_quantile({q}, sum by ({by}) (rate({metric}_bucket{{{selector}}}[{window}])))"


def of_operator(metric: str) -> str:
    """A metric that every process in Python has, of the operator's pods alone."""
    return f"sum by (pod) ({metric} and on (instance) funicular_operator_leader)"


def _summary() -> Row:
    return Row(
        "Now",
        (
            number(
                "Requests a second",
                "Of all policies chosen.",
                "reqps",
                Query(f"sum({requests('policy')}) or vector(0)"),
            ),
            number(
                "Envoys that serve",
                "As their agents see them.",
                "short",
                Query(f"sum(funicular_agent_envoy_up{{{PODS}}})"),
            ),
            number(
                "Envoys that do not",
                "As their agents see them.",
                "short",
                Query(f"count(funicular_agent_envoy_up{{{PODS}}} == 0) or vector(0)"),
                bad_above=1,
            ),
            number(
                "Policies not taken",
                "Newest traffic that a pod refused.",
                "short",
                Query(f"sum(funicular_agent_policies_with_errors{{{PODS}}})"),
                bad_above=1,
            ),
            number("Leaders", "One replica of the operator leads.", "short", Query("sum(funicular_operator_leader)")),
            number(
                "Pods with a random id key",
                "Their feedback ids end with the pod.",
                "short",
                Query(f"sum(funicular_agent_id_key_is_random{{{PODS}}})"),
                bad_above=1,
            ),
        ),
    )


def _traffic() -> Row:
    failed = requests("namespace, policy, candidate", 'code=~"5xx|0"')
    everything = requests("namespace, policy, candidate")
    return Row(
        "Traffic",
        (
            lines("Requests a second", "By policy.", "reqps", Query(requests("namespace, policy"), NAME), stacked=True),
            lines(
                "Requests a second by status",
                "0: no answer at all.",
                "reqps",
                Query(requests("code"), "{{code}}"),
                stacked=True,
            ),
            lines(
                "Failed requests by candidate",
                "5xx and no answer. An empty candidate: the gateway answered itself.",
                "percentunit",
                Query(f"({failed} or 0 * {everything}) / {everything}", f"{NAME} {{{{candidate}}}}"),
            ),
            lines(
                "Latency",
                "Of the policies chosen: first byte of the request to the answer's last.",
                "s",
                *(Query(quantile(q, "funicular_request_duration_seconds"), f"p{q * 100:g}") for q in (0.5, 0.95, 0.99)),
            ),
            lines(
                "Time to the first token",
                "Of the policies chosen: first byte of the request to the answer's first body byte.",
                "s",
                *(
                    Query(quantile(q, "funicular_time_to_first_token_seconds"), f"p{q * 100:g}")
                    for q in (0.5, 0.95, 0.99)
                ),
            ),
            lines(
                "Latency p95 by policy",
                "Of the policies chosen.",
                "s",
                Query(quantile(0.95, "funicular_request_duration_seconds", by="namespace, policy, le"), NAME),
            ),
        ),
    )


def _envoy() -> Row:
    def rejected(kind: str) -> str:
        name = f"envoy_{kind}_update"
        return f"{by_pod(f'{name}_rejected')} or 0 * {by_pod(f'{name}_success')}"

    return Row(
        "Envoy",
        (
            lines(
                "Open requests",
                "By pod.",
                "short",
                Query(by_pod("envoy_http_downstream_rq_active", GATEWAY), "{{pod}}"),
            ),
            lines(
                "Connections", "By pod.", "short", Query(by_pod("envoy_http_downstream_cx_active", GATEWAY), "{{pod}}")
            ),
            lines(
                "Answers a second by class",
                "All that Envoy answered on the applications' port, unknown models included.",
                "reqps",
                Query(
                    f"sum by (envoy_response_code_class) (rate(envoy_http_downstream_rq_xx{{{GATEWAY}}}[{RATE}]))",
                    "{{envoy_response_code_class}}xx",
                ),
                stacked=True,
            ),
            lines(
                "Memory",
                "What Envoy has allocated, and what it holds of the machine's.",
                "bytes",
                Query(by_pod("envoy_server_memory_allocated"), "{{pod}} allocated"),
                Query(by_pod("envoy_server_memory_physical_size"), "{{pod}} held"),
            ),
            lines(
                "Refused configuration",
                "Files that Envoy did not take, since it started: routes, clusters, shares.",
                "short",
                Query(rejected("http_rds"), "{{pod}} routes"),
                Query(rejected("cluster_manager_cds"), "{{pod}} clusters"),
                Query(rejected("runtime"), "{{pod}} shares"),
            ),
            lines("Uptime", "A restart begins at zero.", "s", Query(by_pod("envoy_server_uptime"), "{{pod}}")),
        ),
    )


def _agents() -> Row:
    version = f"funicular_agent_traffic_version{{{POLICY}}}"
    newest = f"max by (namespace, policy) ({version})"
    return Row(
        "Agents",
        (
            lines(
                "Versions behind the newest",
                "Summed over the policies, by pod: 0 when all pods serve alike.",
                "short",
                Query(f"sum by (pod) ({newest} - on (namespace, policy) group_right () {version})", "{{pod}}"),
            ),
            lines(
                "From the watch event until Envoy serves by it",
                "Over all pods, within as long as the dashboard's time range: changes are rare.",
                "s",
                *(
                    Query(quantile(q, "funicular_agent_ack_seconds", PODS, window="$__range"), f"p{q * 100:g}")
                    for q in (0.5, 0.99)
                ),
            ),
            lines(
                "Policies",
                "Those that select the pod, and of them those whose newest traffic it could not take.",
                "short",
                Query(by_pod("funicular_agent_policies"), "{{pod}}"),
                Query(by_pod("funicular_agent_policies_with_errors"), "{{pod}} not taken"),
            ),
            lines(
                "Reports to the operator",
                "By what became of them.",
                "ops",
                Query(by_pod("funicular_agent_reports_sent_total", over="rate"), "{{pod}} taken"),
                Query(by_pod("funicular_agent_reports_failed_total", over="rate"), "{{pod}} failed"),
            ),
            lines(
                "Share in force by pod",
                "As each pod confirmed it; pods that differ for longer than a moment are out of step.",
                "percentunit",
                Query(
                    f"max by (namespace, policy, pod) (funicular_agent_share{{{POLICY}}}) / 10000",
                    f"{NAME} {{{{pod}}}}",
                ),
                steps=True,
                ceiling=1,
            ),
            lines(
                "Feedback that was refused",
                "Ids that are unknown, too old or not signed by this gateway.",
                "ops",
                Query(by_pod("funicular_agent_feedback_refused_total", over="rate"), "{{pod}}"),
            ),
        ),
    )


def _operator() -> Row:
    reconciles = f"sum by (result) (rate(funicular_operator_reconciles_total[{RATE}]))"
    seconds = f"sum by (le) (rate(funicular_operator_reconcile_seconds_bucket[{RATE}]))"
    errors = f"sum by (error) (rate(funicular_operator_prometheus_errors_total[{RATE}])) or vector(0)"
    return Row(
        "Operator",
        (
            lines(
                "Leader", "By pod.", "short", Query("sum by (pod) (funicular_operator_leader)", "{{pod}}"), steps=True
            ),
            lines(
                "Queue",
                "Policies that wait for a worker, and those in work.",
                "short",
                Query("sum(funicular_operator_queue_ready)", "waiting"),
                Query("sum(funicular_operator_queue_running)", "in work"),
            ),
            lines("Reconciles a second", "By result.", "ops", Query(reconciles, "{{result}}"), stacked=True),
            lines(
                "Duration of a reconcile",
                "Over all policies.",
                "s",
                *(Query(f"histogram_quantile({q}, {seconds})", f"p{q * 100:g}") for q in (0.5, 0.99)),
            ),
            lines("Failed queries to Prometheus", "By the class of error.", "ops", Query(errors, "{{error}}")),
            lines(
                "Memory",
                "Resident, by pod.",
                "bytes",
                Query(of_operator("process_resident_memory_bytes"), "{{pod}}"),
            ),
        ),
    )


def gateway() -> Dashboard:
    return board(
        "funicular-gateway",
        "Funicular / Gateway health",
        "The gateways' traffic, Envoy, the agents, and the operator itself.",
        _summary(),
        _traffic(),
        _envoy(),
        _agents(),
        _operator(),
        pods=True,
        since="now-1h",
    )
