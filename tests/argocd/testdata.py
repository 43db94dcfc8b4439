"""The policies of `cases.py` as files, with the expectations that argo-cd's own tests read (`resource_customizations`).

`python -m tests.argocd.testdata` writes them into the chart; a test compares. Read the difference before it is committed.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import yaml

from funicular.api.verbs import ANNOTATION
from hack.argocd.customizations import ACTIONS, FOLDER
from tests.argocd.cases import CASES, Case

Json = dict[str, Any]
TITLES = {
    "promote": "Promote without evidence",
    "approve": "Approve this step",
    "retry": "Retry from the first step",
}
# Which case each action is tried on.
ACTED_ON = {
    "pause": "ramping",
    "resume": "paused",
    "promote": "ramping",
    "approve": "awaiting-approval",
    "abort": "ramping",
    "retry": "rejected",
}


class _Dumper(yaml.SafeDumper):
    """Without anchors: a person reads these files."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def files() -> dict[str, str]:
    """Path below the customization's folder -> text."""
    made = {case.name: case.make() for case in CASES}
    found = {f"testdata/{name}.yaml": _text(body) for name, body in made.items()}
    found["health_test.yaml"] = _text({"tests": [_health(case, made[case.name]) for case in CASES]})
    found["actions/action_test.yaml"] = _text(
        {
            "discoveryTests": [
                {"inputPath": f"../testdata/{case.name}.yaml", "result": discovered(case)} for case in CASES
            ],
            "actionTests": [
                {
                    "action": action,
                    "inputPath": f"../testdata/{case}.yaml",
                    "expectedOutputPath": f"testdata/{action}.yaml",
                }
                for action, case in ACTED_ON.items()
            ],
        }
    )
    for action, case in ACTED_ON.items():
        found[f"actions/testdata/{action}.yaml"] = _text(asked(made[case], action))
    return found


def message(case: Case, body: Json) -> str:
    """What Argo CD shows."""
    if case.source == "script":
        return case.says
    if case.source == "message":
        return str(body["status"]["message"])
    (condition,) = [it for it in body["status"]["conditions"] if it["type"] == case.source]
    return str(condition["message"])


def discovered(case: Case) -> list[Json]:
    return [
        {
            "name": name,
            "disabled": name not in case.enabled,
            **({"displayName": TITLES[name]} if name in TITLES else {}),
        }
        for name in ACTIONS
    ]


def asked(body: Json, action: str) -> Json:
    """The policy with the request of a person, as `kubectl funicular` would write it."""
    found = copy.deepcopy(body)
    revision = found["status"].get("candidate", found["status"])["revision"]
    request = f"{action} {revision} argocd-{found['metadata']['resourceVersion']} argocd"
    found["metadata"]["annotations"][ANNOTATION] = request
    return found


def _health(case: Case, body: Json) -> Json:
    return {
        "healthStatus": {"status": case.health, "message": message(case, body)},
        "inputPath": f"testdata/{case.name}.yaml",
    }


def _text(value: Any) -> str:
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, width=120, allow_unicode=True)


def main() -> None:
    for name, text in files().items():
        path = Path(FOLDER / name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


if __name__ == "__main__":
    main()
