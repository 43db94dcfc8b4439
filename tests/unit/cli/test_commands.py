from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner, Result

from funicular.api.crd import render
from funicular.cli import main
from funicular.errors import ApiUnavailable, FunicularError, InvalidPolicy
from tests.unit.api.bad_policies import EXAMPLES, changed, example, put


def invoke(*arguments: str, text: str | None = None) -> Result:
    return CliRunner().invoke(main.app, list(arguments), input=text)


def test_crd_prints_what_is_in_the_repository() -> None:
    assert invoke("crd").output == render()


def test_lint_accepts_the_examples() -> None:
    result = invoke("lint", str(EXAMPLES))
    assert result.exit_code == 0
    assert result.output == "3 RoutingPolicies: good\n"


def test_lint_says_file_policy_field_and_sentence(tmp_path: Path) -> None:
    file = tmp_path / "bad.yaml"
    file.write_text(yaml.safe_dump(changed(put("rollout.holdback", -1))))
    result = invoke("lint", str(file))
    assert result.exit_code == 1
    field = "spec.rollout.holdback: holdback is in per cent: 0 to 50"
    assert f"{file}: support-chat: {field}" in result.output


def test_lint_reads_several_documents_lists_and_the_standard_input() -> None:
    bad = changed(put("rollout.holdback", -1), "bad")
    documents = [example(), {"kind": "ConfigMap", "apiVersion": "v1"}, {"kind": "List", "items": [bad]}]
    result = invoke("lint", "-", text=yaml.safe_dump_all(documents))
    assert result.exit_code == 1
    assert [line.split(": ")[:2] for line in result.output.splitlines()] == [["<stdin>", "bad"]] * 2


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        pytest.param("a: [", "line 1: ", id="no YAML"),
        pytest.param("kind: A\nkind: B\n", "line 2: the key kind stands twice", id="a key that stands twice"),
        pytest.param("just words", "is not a mapping", id="words"),
        pytest.param(
            "apiVersion: routing.funicular.dev/v1alpha1\nkind: Policy", "must be RoutingPolicy", id="another kind"
        ),
        pytest.param("a: !!python/object:os.system {}", "could not determine a constructor", id="a tag of Python's"),
    ],
)
def test_lint_says_where_a_file_is_broken(tmp_path: Path, text: str, sentence: str) -> None:
    file = tmp_path / "bad.yaml"
    file.write_text(text)
    result = invoke("lint", str(file))
    assert result.exit_code == 1
    assert sentence in result.output


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["/usr/bin/funicular", *arguments])
    with pytest.raises(SystemExit) as caught:
        main.run()
    return int(caught.value.code or 0)


def test_a_file_that_cannot_be_read_hides_no_other_finding(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    bad = tmp_path / "bad.yaml"
    bad.write_text("apiVersion: routing.funicular.dev/v1alpha1\nkind: RoutingPolicy\nmetadata: {name: x}\nspec: {}\n")
    assert run(monkeypatch, "lint", "/nowhere.yaml", str(bad)) == 1
    said = capsys.readouterr().out
    assert "/nowhere.yaml cannot be read: No such file or directory" in said
    assert f"{bad}: x: " in said


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        pytest.param(("lint", "/dev/null"), "there is no RoutingPolicy in /dev/null", id="an empty file"),
        pytest.param(("get",), "no cluster is configured", id="no cluster"),
    ],
)
def test_a_failure_is_one_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], sentence: str
) -> None:
    monkeypatch.setenv("KUBECONFIG", "/nowhere")
    assert run(monkeypatch, *arguments) == 1
    said = capsys.readouterr().err
    assert said.startswith("funicular: ")
    assert sentence in said
    assert said.count("\n") == 1


def test_a_wrong_command_line_is_2(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(monkeypatch, "abort") == 2
    assert run(monkeypatch, "get", "name", "-A") == 2
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (InvalidPolicy("spec.x: no", remedy="correct it"), "spec.x: no; correct it"),
        (ApiUnavailable("GET /x: refused"), "GET /x: refused"),
    ],
)
def test_a_remedy_follows_the_sentence(error: FunicularError, sentence: str) -> None:
    assert main.sentence_of(error) == sentence


@pytest.mark.parametrize(
    ("called", "name"), [("/usr/bin/funicular", "funicular"), ("/usr/bin/kubectl-funicular", "kubectl funicular")]
)
def test_the_plugin_speaks_of_itself_as_kubectl_does(called: str, name: str) -> None:
    assert main.program_name(called) == name


def test_every_command_has_help_of_its_own() -> None:
    for command in main.app.registered_commands:
        assert command.name
        text = command.help or (command.callback.__doc__ if command.callback else "")
        assert text, command.name


def test_the_processes_do_not_pay_for_each_other() -> None:
    """`funicular agent` runs in every gateway pod."""
    heavy = "{'kopf', 'kubernetes', 'scipy', 'numpy', 'aiohttp', 'httpx', 'prometheus_api_client'}"
    code = f"import sys, funicular.cli.main; print({heavy} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "set()"


def test_classifier_serve_passes_its_options_on() -> None:
    result = invoke("classifier", "serve", "--port", "no-number")
    assert result.exit_code == 2


def test_lint_of_what_is_nested_too_deeply_is_one_sentence() -> None:
    result = invoke("lint", "-", text="[" * 20_000)
    assert result.exit_code == 1
    assert result.output == "<stdin>: it is nested too deeply to be a manifest\n"


def test_the_version() -> None:
    assert invoke("--version").output.startswith("funicular 0.")


def test_context_and_kubeconfig_may_stand_anywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(main.os, "environ", environment := {})
    assert main.placed(["get", "--context", "two", "-A", "--kubeconfig=/a"]) == ["get", "-A"]
    assert environment == {main.CONTEXT: "two", "KUBECONFIG": "/a"}


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        pytest.param(["re"], {"resume", "retry"}, id="commands"),
        pytest.param(["get", "--out"], {"--output"}, id="options"),
        pytest.param(["get", "-o", "j"], {"json"}, id="values"),
    ],
)
def test_kubectl_completes(
    words: list[str], expected: set[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["kubectl_complete-funicular", *words])
    main.complete()
    *candidates, directive = capsys.readouterr().out.splitlines()
    assert {line.partition("\t")[0] for line in candidates} == expected
    assert directive == ":4"
