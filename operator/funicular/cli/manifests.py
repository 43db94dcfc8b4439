"""Commands about manifests, without a cluster: `crd` prints the definition, `lint` says what the API server would say."""

from __future__ import annotations

import sys
from collections.abc import Hashable, Iterator
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml

from funicular.api.base import GROUP, KIND
from funicular.errors import UserMustFix

SUFFIXES = (".yaml", ".yml", ".json")


class _Strict(yaml.SafeLoader):
    """As kubectl's strict validation: a key that stands twice is an error, not the last one's victory."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            if isinstance(key_node, yaml.ScalarNode):
                if key_node.value in seen:
                    raise yaml.constructor.ConstructorError(
                        None, None, f"the key {key_node.value} stands twice", key_node.start_mark
                    )
                seen.add(key_node.value)
        return super().construct_mapping(node, deep)


def crd() -> None:
    """Print the CustomResourceDefinition: funicular crd | kubectl apply --server-side -f -"""
    from funicular.api.crd import render

    sys.stdout.write(render())


def lint(
    files: Annotated[list[str], typer.Argument(help="Manifests, folders of manifests, or - for the standard input.")],
) -> None:
    """Check policies as the API server would, without one. Other kinds of objects in the files are passed over."""
    from funicular.api.lint import lint as findings_of

    policies, wrong = 0, 0
    for name, text in _texts(files):
        if isinstance(text, OSError | UnicodeDecodeError):
            wrong += 1
            print(
                f"{name} cannot be read: {(text.strerror if isinstance(text, OSError) else None) or 'it is not text'}"
            )
            continue
        try:
            found = [document for document in yaml.load_all(text, _Strict) if document is not None]
        except yaml.YAMLError as exc:
            wrong += 1
            print(f"{name}: {_where(exc)}")
            continue
        except RecursionError:
            wrong += 1
            print(f"{name}: it is nested too deeply to be a manifest")
            continue
        for document in (item for whole in found for item in _objects(whole)):
            if not _is_ours(document):
                continue
            policies += 1
            findings = findings_of(document)
            wrong += bool(findings)
            for finding in findings:
                print(f"{name}: {_name(document)}: {finding}")
    if not policies and not wrong:
        raise UserMustFix(f"there is no {KIND} in {', '.join(files)}", remedy=f"name a file with kind: {KIND}")
    if wrong:
        raise typer.Exit(1)
    print(f"{policies} {KIND if policies == 1 else 'RoutingPolicies'}: good")


def _texts(files: list[str]) -> Iterator[tuple[str, str | OSError | UnicodeDecodeError]]:
    """Each file's text, or why it cannot be read: one bad file must not hide the findings in the others."""
    for name in files:
        path = Path(name)
        if name == "-":
            yield "<stdin>", sys.stdin.read()
            continue
        for file in _inside(path) if path.is_dir() else [path]:
            try:
                yield str(file), file.read_text()
            except (OSError, UnicodeDecodeError) as exc:
                yield str(file), exc


def _inside(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.suffix in SUFFIXES and path.is_file())


def _objects(document: Any) -> Iterator[Any]:
    if isinstance(document, dict) and document.get("kind") == "List" and isinstance(document.get("items"), list):
        yield from document["items"]
    else:
        yield document


def _is_ours(document: Any) -> bool:
    """By its group as well, so that a misspelt kind is said and a Deployment is not."""
    if not isinstance(document, dict):
        return True
    return document.get("kind") == KIND or str(document.get("apiVersion", "")).startswith(f"{GROUP}/")


def _name(document: Any) -> str:
    metadata = document.get("metadata") if isinstance(document, dict) else None
    return str(metadata.get("name", "?")) if isinstance(metadata, dict) else "?"


def _where(error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None)
    problem = getattr(error, "problem", None) or "is not YAML"
    return f"line {mark.line + 1}: {problem}" if mark else str(problem)
