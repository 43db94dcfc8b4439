"""The rollout dashboard: where each policy stands, what its arms do, and why a ramp goes on, holds or goes back.

Called by the package's `boards`. Every expression gives a sample for each policy, also where nothing happened.
"""

from __future__ import annotations

from grafana_foundation_sdk.models.dashboard import Dashboard

from hack.dashboards.panels import POLICY, Query, Row, board, lines, number, rows_of, words

PHASE = f"max by (namespace, policy) (funicular_operator_phase{{{POLICY}}})"
ARM = "{{namespace}}/{{policy}} {{arm}}"
NAME = "{{namespace}}/{{policy}}"


def share(which: str) -> str:
    return f"max by (namespace, policy) (funicular_operator_share_{which}{{{POLICY}}}) / 10000"


def by_arm(metric: str, *more: str, labels: str = "", per: str = "rate", window: str = "$__rate_interval") -> str:
    """The sum over pods and replicates, by arm and the labels of `more`."""
    selector = f"{POLICY}, {labels}" if labels else POLICY
    return f"sum by ({', '.join(('namespace', 'policy', 'arm', *more))}) ({per}({metric}{{{selector}}}[{window}]))"


def quantile(q: float, metric: str) -> str:
    return f"histogram_quantile({q}, {by_arm(f'{metric}_bucket', 'le')})"


def in_window(arm: str, outcome: str = "") -> str:
    """Answers of each hash replicate within the last hour, of the revision that is compared."""
    labels = f'{POLICY}, arm=~"{arm}"' + (f', outcome="{outcome}"' if outcome else "")
    return f"sum by (namespace, policy, revision, replicate) (increase(funicular_outcomes_total{{{labels}}}[1h]))"


def errors_in_standard_errors() -> str:
    """Bad answers: the treatment's share less the control's, over the standard error of a ratio of sums between replicates.

    The linearised variance of a ratio estimate p = sum b / sum n over K replicates: K/(K-1) sum (b - p n)^2 / (sum n)^2.
    The residuals' mean is zero, so their sum of squares is K times their variance.
    """
    by, on = "by (namespace, policy, revision)", "on (namespace, policy, revision)"

    def answers(arm: str, more: str = "") -> str:
        return f'sum {by} (increase(funicular_outcomes_total{{{POLICY}, arm="{arm}"{more}}}[1h]))'

    def ratio(arm: str) -> str:
        bad = ', outcome="bad"'
        return f"({answers(arm, bad)} / {answers(arm)})"

    def variance(arm: str) -> str:
        residual = f"{in_window(arm, 'bad')} - {in_window(arm)} * {on} group_left () {ratio(arm)}"
        count = f"count {by} ({in_window(arm)})"
        return f"stdvar {by} ({residual}) * {count} ^ 2 / ({count} - 1) / {answers(arm)} ^ 2"

    return f"({ratio('treatment')} - {ratio('control')}) / sqrt({variance('treatment')} + {variance('control')})"


def _now() -> Row:
    columns = {
        "namespace": "Namespace",
        "policy": "Policy",
        "phase": "Phase",
        "revision": "Revision",
        "Value #A": "Share ordered",
        "Value #B": "Share confirmed",
    }
    phase = f"max by (namespace, policy, phase, revision) (funicular_operator_phase{{{POLICY}}})"
    with_phase = f"{phase} * on (namespace, policy) group_left ()"
    return Row(
        "Now",
        (
            rows_of(
                "Policies",
                "Confirmed is empty while a gateway pod has yet to confirm.",
                "percentunit",
                *(Query(f"{with_phase} {share(which)}") for which in ("desired", "acked")),
                names=columns,
            ),
        ),
    )


def _ramp() -> Row:
    verdict = f"max by (namespace, policy, slo, outcome) (funicular_operator_verdict{{{POLICY}}})"
    return Row(
        "Ramp",
        (
            words(
                "Phase",
                "One row for each phase that a policy was in.",
                Query(
                    f"max by (namespace, policy, phase) (funicular_operator_phase{{{POLICY}}})", f"{NAME} {{{{phase}}}}"
                ),
            ),
            words(
                "Verdicts",
                "The latest outcome of each SLO; they are cleared when a step begins and when a revision is reverted.",
                Query(verdict, f"{NAME} {{{{slo}}}} {{{{outcome}}}}"),
            ),
            lines(
                "Share of the users: ordered, confirmed, observed",
                "Each level of what is ordered is one step of the ramp. Of the users outside the holdback.",
                "percentunit",
                Query(share("desired"), f"{NAME} ordered"),
                Query(share("acked"), f"{NAME} confirmed"),
                Query(share("observed"), f"{NAME} observed"),
                span=12,
                steps=True,
                ceiling=1,
            ),
            lines(
                "Treated requests of the last hour",
                "Evidence that the ramp has at hand; it wants minSamples at each step.",
                "short",
                Query(by_arm("funicular_outcomes_total", per="increase", window="1h"), ARM),
                span=12,
            ),
        ),
    )


def _slos() -> Row:
    requests = by_arm("funicular_requests_total")
    bad = by_arm("funicular_outcomes_total", labels='outcome="bad"')
    up = by_arm("funicular_feedback_total", labels='kind="thumbs_up"')
    answered = by_arm("funicular_outcomes_total")
    slow = by_arm("funicular_slow_total", "indicator")
    thumbs = by_arm("funicular_feedback_total", labels='kind=~"thumbs_up|thumbs_down"')
    return Row(
        "The arms side by side",
        (
            lines(
                "ErrorRate",
                "5xx, 429, broken off, or rescued by the fallback; only while a policy is measured.",
                "percentunit",
                Query(f"{bad} / {answered}", ARM),
            ),
            lines(
                "Answers over the latency bound",
                "Share of the answers over each bound of the policy's latency SLOs.",
                "percentunit",
                Query(f"{slow} / on (namespace, policy, arm) group_left () {answered}", f"{ARM} {{{{indicator}}}}"),
            ),
            lines(
                "ThumbsUpRate",
                "Thumbs up of all thumbs, by the arm that answered.",
                "percentunit",
                Query(f"{up} / {thumbs}", ARM),
                ceiling=1,
            ),
            lines(
                "CostPerRequest",
                "At the policy's prices.",
                "currencyUSD",
                Query(f"{by_arm('funicular_cost_dollars_total')} / {requests}", ARM),
            ),
            lines(
                "Latency: p50 and p95",
                "From the request's first byte to the answer's last.",
                "s",
                *(Query(quantile(q, "funicular_request_duration_seconds"), f"{ARM} p{q * 100:g}") for q in (0.5, 0.95)),
            ),
            lines(
                "TimeToFirstToken: p50 and p95",
                "From the request's first byte to the answer's first body byte.",
                "s",
                *(
                    Query(quantile(q, "funicular_time_to_first_token_seconds"), f"{ARM} p{q * 100:g}")
                    for q in (0.5, 0.95)
                ),
            ),
        ),
    )


def _guards() -> Row:
    treated = f"{in_window('treatment')} / ({in_window('treatment|control')} > 0)"
    burn = by_arm("funicular_outcomes_total", labels='arm="treatment"', window="1m")
    burnt = by_arm("funicular_outcomes_total", labels='arm="treatment", outcome="bad"', window="1m")
    acked = "sum by (le) (funicular_operator_decision_to_acked_seconds_bucket)"
    return Row(
        "Guards",
        (
            lines(
                "Errors: treatment less control, in standard errors",
                "Over the last hour, by hash replicates of the users; what the operator tests is stricter.",
                "short",
                Query(errors_in_standard_errors(), f"{NAME} {{{{revision}}}}"),
                floor=None,
            ),
            lines(
                "Fast burn: treated requests that fail",
                "Within a minute. The agents' guard reverts at about one half, and does not wait for Prometheus.",
                "percentunit",
                Query(f"{burnt} / {burn} or 0 * {PHASE}", NAME),
                ceiling=1,
            ),
            lines(
                "Sample ratio: users in treatment",
                "Mean over the hash replicates of the last hour, beside the share that was ordered: an hour into a step"
                " they agree, or the split or the counting is broken.",
                "percentunit",
                Query(f"avg by (namespace, policy, revision) ({treated})", f"{NAME} treated"),
                Query(share("desired"), f"{NAME} ordered"),
            ),
            lines(
                "Reverts",
                "Since the leading operator started, by reason.",
                "short",
                Query(
                    f"sum by (namespace, policy, reason) (funicular_operator_reverts_total{{{POLICY}}}) or 0 * {PHASE}",
                    f"{NAME} {{{{reason}}}}",
                ),
                steps=True,
            ),
            lines(
                "From the decision to revert to the last pod's confirmation",
                "All reverts since the operators started.",
                "s",
                *(Query(f"histogram_quantile({q}, {acked})", f"p{q * 100:g}") for q in (0.5, 0.95)),
            ),
            lines(
                "Failed queries to Prometheus",
                "By the class of error. While queries fail, the share is frozen.",
                "ops",
                Query(
                    "sum by (error) (rate(funicular_operator_prometheus_errors_total[$__rate_interval])) or vector(0)",
                    "{{error}}",
                ),
            ),
        ),
    )


def _counts() -> Row:
    def phases(pattern: str) -> Query:
        found = f'max by (namespace, policy) (funicular_operator_phase{{{POLICY}, phase=~"{pattern}"}})'
        return Query(f"count({found}) or vector(0)")

    return Row(
        "Policies",
        (
            number("Policies", "All that the leader knows.", "short", Query(f"count({PHASE}) or vector(0)")),
            number("Ramping", "Their share rises.", "short", phases("Ramping|Preparing")),
            number("Promoted", "Served by a cheaper route.", "short", phases("Promoted")),
            number("Wait for a person", "An approval, or a pause.", "short", phases("AwaitingApproval|Paused")),
            number("Blocked", "Somebody must mend them.", "short", phases("Blocked|Invalid|Conflicted"), bad_above=1),
            number(
                "Reverted", "A revision was taken back.", "short", phases("Reverting|Reverted|Degraded"), bad_above=1
            ),
        ),
    )


def rollout() -> Dashboard:
    return board(
        "funicular-rollout",
        "Funicular / Rollout",
        "Where each policy's ramp stands, what its arms do, and why it goes on, holds or goes back.",
        _counts(),
        _now(),
        _ramp(),
        _slos(),
        _guards(),
    )
