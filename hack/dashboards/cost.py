"""The cost dashboard: what the requests cost, what they would have cost at the baseline, and who decided that.

Called by the package's `boards`. Dollars are those of the policies' prices; without prices there are none.
"""

from __future__ import annotations

from grafana_foundation_sdk.models.dashboard import Dashboard

from hack.dashboards.panels import POLICY, Query, Row, board, lines, number, rows_of

NAME = "{{namespace}}/{{policy}}"
RATE = "$__rate_interval"


def total(metric: str, by: str = "", window: str = RATE, labels: str = "") -> str:
    selector = f"{POLICY}, {labels}" if labels else POLICY
    over = "increase" if window == "$__range" else "rate"
    grouped = f"sum by ({by}) " if by else "sum"
    return f"{grouped}({over}({metric}{{{selector}}}[{window}]))"


REAL, BASELINE = "funicular_cost_dollars_total", "funicular_baseline_cost_dollars_total"
BY_POLICY = "namespace, policy"


def saved(by: str = "", window: str = RATE) -> str:
    return f"({total(BASELINE, by, window)} - {total(REAL, by, window)})"


def _summary() -> Row:
    within = "Within the time range of the dashboard."
    columns = {
        "namespace": "Namespace",
        "policy": "Policy",
        "Value #A": "At the baseline",
        "Value #B": "Real",
        "Value #C": "Saved",
    }
    return Row(
        "Within the time range",
        (
            number(
                "At the baseline", within, "currencyUSD", Query(total(BASELINE, window="$__range")), decimals=2, span=6
            ),
            number("Real", within, "currencyUSD", Query(total(REAL, window="$__range")), decimals=2, span=6),
            number("Saved", within, "currencyUSD", Query(saved(window="$__range")), decimals=2, span=6),
            number(
                "Saved",
                f"Of what the baseline would have cost. {within}",
                "percentunit",
                Query(f"{saved(window='$__range')} / {total(BASELINE, window='$__range')}"),
                decimals=1,
                span=6,
            ),
            rows_of(
                "By policy",
                within,
                "currencyUSD",
                Query(total(BASELINE, BY_POLICY, "$__range")),
                Query(total(REAL, BY_POLICY, "$__range")),
                Query(saved(BY_POLICY, "$__range")),
                names=columns,
            ),
        ),
    )


def _dollars() -> Row:
    requests = total("funicular_requests_total", "namespace, policy, arm")
    return Row(
        "Dollars",
        (
            lines(
                "Dollars an hour: real, and at the baseline",
                "What the same tokens cost at the prices of the candidates that answered, and at the baseline's.",
                "currencyUSD",
                Query(f"3600 * {total(REAL)}", "real"),
                Query(f"3600 * {total(BASELINE)}", "at the baseline"),
            ),
            lines(
                "Saved, an hour",
                "By policy; below zero: the route costs more than the baseline.",
                "currencyUSD",
                Query(f"3600 * {saved(BY_POLICY)}", NAME),
                floor=None,
            ),
            lines(
                "Real dollars an hour by candidate",
                "Who is paid.",
                "currencyUSD",
                Query(f"3600 * {total(REAL, 'namespace, policy, candidate')}", f"{NAME} {{{{candidate}}}}"),
                stacked=True,
            ),
            lines(
                "Cost of a request by arm",
                "The holdback's is what the baseline costs today.",
                "currencyUSD",
                Query(f"{total(REAL, 'namespace, policy, arm')} / {requests}", f"{NAME} {{{{arm}}}}"),
            ),
            lines(
                "Tokens a second by candidate",
                "As the providers report them.",
                "short",
                Query(
                    total("funicular_tokens_total", "candidate, kind"),
                    "{{candidate}} {{kind}}",
                ),
                stacked=True,
            ),
            lines(
                "Tokens of a request by arm",
                "Prompt and completion together: a model that talks more costs more.",
                "short",
                Query(
                    f"{total('funicular_tokens_total', 'namespace, policy, arm')} / {requests}", f"{NAME} {{{{arm}}}}"
                ),
            ),
        ),
    )


def _decisions() -> Row:
    escalated = total("funicular_feedback_total", "namespace, policy, arm", labels='kind="escalated"')
    requests = total("funicular_requests_total", "namespace, policy, arm")
    return Row(
        "Who answered, and why",
        (
            lines(
                "Requests a second by candidate",
                "What answered, the fallback included.",
                "reqps",
                Query(total("funicular_requests_total", "namespace, policy, candidate"), f"{NAME} {{{{candidate}}}}"),
                stacked=True,
            ),
            lines(
                "Decisions a second by label and reason",
                "One reason for each request: fallback, no_unit, classified, no_answer, unknown_label, not_asked.",
                "reqps",
                Query(total("funicular_decisions_total", "decision, reason"), "{{decision}} {{reason}}"),
                stacked=True,
            ),
            lines(
                "Requests that were escalated to a person",
                "By the applications' feedback; of all requests of the arm.",
                "percentunit",
                Query(f"({escalated} or 0 * {requests}) / {requests}", f"{NAME} {{{{arm}}}}"),
            ),
        ),
    )


def cost() -> Dashboard:
    return board(
        "funicular-cost",
        "Funicular / Cost and savings",
        "What the requests cost, what they would have cost at the baseline, and who decided that.",
        _summary(),
        _dollars(),
        _decisions(),
        since="now-24h",
    )
