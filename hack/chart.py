"""The files that are made from the chart: the kustomization, the table of values in its README, the CRD that it carries.

    python -m hack.chart            # make chart
    python -m hack.chart --check    # make check: 1 if one of them is not what would be written now

Called by the Makefile and by tests/chart. It needs Helm (hack.cluster finds or builds it) and no cluster.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from hack.cluster import binaries

CHECKOUT = Path(__file__).resolve().parents[1]
CHART = CHECKOUT / "charts" / "funicular"
KUSTOMIZE = CHECKOUT / "charts" / "kustomize"
RELEASE = NAMESPACE = "funicular"
BEGIN, END = "<!-- values: begin -->", "<!-- values: end -->"
HELMS_OWN = ("helm.sh/chart", "app.kubernetes.io/managed-by")  # labels that would say what is not so without Helm
ONLY_FOR_HELM_TEST = "smoke"  # a component
COMPONENT = "app.kubernetes.io/component"

Json = dict[str, Any]


class Undocumented(Exception):
    """A value of values.yaml has no `# -- ` sentence above it."""


def helm(*arguments: str, stdin: str | None = None) -> str:
    """Raises CalledProcessError, whose stderr says what Helm does not like."""
    program = binaries.ensure(["helm"])["helm"]
    return subprocess.run([program, *arguments], check=True, capture_output=True, text=True, input=stdin).stdout


def template(*arguments: str, values: Mapping[str, Any] | None = None, release: str = RELEASE) -> list[Json]:
    """What `helm template` makes of the chart; hooks too, unless `--no-hooks` is among the arguments."""
    given = ("--values", "-") if values is not None else ()
    text = helm(
        "template",
        release,
        str(CHART),
        "--namespace",
        NAMESPACE,
        *given,
        *arguments,
        stdin=yaml.safe_dump(values or {}),
    )
    return [document for document in yaml.safe_load_all(text) if document]


# --- charts/kustomize -------------------------------------------------------------------------------------------------
def without_helm(document: Json) -> Json:
    """The object as it is where no Helm manages it."""
    metadata = document["metadata"]
    labels = {key: value for key, value in metadata.get("labels", {}).items() if key not in HELMS_OWN}
    annotations = {k: v for k, v in metadata.get("annotations", {}).items() if not k.startswith("helm.sh/")}
    kept = {key: value for key, value in metadata.items() if key not in ("labels", "annotations")}
    extra = {"annotations": annotations} if annotations else {}
    return {**document, "metadata": {**kept, "labels": labels, **extra}}


def plain_objects() -> list[Json]:
    """The chart's default output as plain manifests."""
    found = [without_helm(document) for document in template("--no-hooks")]
    return [it for it in found if it["metadata"]["labels"][COMPONENT] != ONLY_FOR_HELM_TEST]


def kustomization() -> dict[Path, str]:
    """The files of charts/kustomize, with their text."""
    by_component: dict[str, list[Json]] = {}
    for document in plain_objects():
        by_component.setdefault(document["metadata"]["labels"][COMPONENT], []).append(document)
    namespace = {
        "apiVersion": "v1",
        "kind": "Namespace",
        "metadata": {"name": NAMESPACE, "labels": {"pod-security.kubernetes.io/enforce": "restricted"}},
    }
    parts = {"namespace": [namespace], **by_component}
    overview = {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "resources": [f"{name}.yaml" for name in parts],
    }
    head = "# Written by `make chart` from charts/funicular: its default output. Do not edit.\n"
    usage = (
        "# kubectl apply --server-side -k charts/kustomize; charts/funicular/README.md says what it leaves to you.\n"
    )
    files = {KUSTOMIZE / f"{name}.yaml": head + _dump(documents) for name, documents in parts.items()}
    return {KUSTOMIZE / "kustomization.yaml": head + usage + _dump([overview]), **files}


class _Dumper(yaml.SafeDumper):
    def ignore_aliases(self, data: Any) -> bool:
        return True


def _dump(documents: Sequence[Json]) -> str:
    return yaml.dump_all(documents, Dumper=_Dumper, sort_keys=False, width=120, explicit_start=len(documents) > 1)


# --- the table of values ----------------------------------------------------------------------------------------------
def documented_values() -> list[tuple[str, str, str]]:
    """(path, default as JSON, sentence) of each value, in the order of values.yaml. Raises Undocumented."""
    text = (CHART / "values.yaml").read_text()
    root = yaml.compose(text, Loader=yaml.SafeLoader)
    assert isinstance(root, yaml.MappingNode)
    return list(_rows(root, text.splitlines(), ""))


def _rows(node: yaml.MappingNode, lines: Sequence[str], prefix: str) -> Iterator[tuple[str, str, str]]:
    for key, value in node.value:
        path = f"{prefix}{key.value}"
        above = lines[key.start_mark.line - 1].strip() if key.start_mark.line else ""
        if above.startswith("# -- "):
            default = yaml.SafeLoader("").construct_document(value)
            yield path, json.dumps(default), above.removeprefix("# -- ")
        elif isinstance(value, yaml.MappingNode) and value.value:
            yield from _rows(value, lines, f"{path}.")
        else:
            raise Undocumented(
                f"values.yaml, line {key.start_mark.line + 1}: {path} has no sentence `# -- ...` above it"
            )


def readme() -> str:
    """The chart's README with the table as it has to be."""
    text = (CHART / "README.md").read_text()
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    rows = [
        f"| `{path}` | `{default}` | {sentence} |".replace("||", "\\|\\|")
        for path, default, sentence in documented_values()
    ]
    table = "\n".join(["| value | default | what it is |", "| --- | --- | --- |", *rows])
    return f"{before}{BEGIN}\n{table}\n{END}{after}"


# --- all of them ------------------------------------------------------------------------------------------------------
def carried_crds() -> dict[Path, str]:
    """The CRDs, inside the chart: Helm packs nothing from outside it."""
    return {
        CHART / "files" / "crds" / path.name: path.read_text() for path in sorted((CHECKOUT / "crds").glob("*.yaml"))
    }


def main(arguments: Sequence[str]) -> int:
    crds = carried_crds()
    if "--check" not in arguments:
        _write(crds)  # first: the kustomization is rendered from them
    files = {**crds, **kustomization(), CHART / "README.md": readme()}
    if "--check" not in arguments:
        _write(files)
        return 0
    stale = [path for path, text in files.items() if not path.exists() or path.read_text() != text]
    stale += [path for path in KUSTOMIZE.glob("*.yaml") if path not in files]
    for path in stale:
        print(f"{path.relative_to(CHECKOUT)} is not what the chart says: run `make chart`", file=sys.stderr)
    return 1 if stale else 0


def _write(files: Mapping[Path, str]) -> None:
    for path, text in files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
