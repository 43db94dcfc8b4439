"""Envoy's counters across restarts, files that are written once, documents."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from funicular.agent.documents import document, secret_value
from funicular.agent.exposition import Families, label_text
from funicular.agent.files import Files
from funicular.agent.secrets import usable
from funicular.agent.series import Monotone, parse, split
from funicular.errors import UserMustFix


def text(value: int, uptime: int | None = None) -> str:
    found = f'# TYPE x counter\nx_requests{{policy="a"}} {value}\nx_requests{{policy="b"}} 1\nother 5\n'
    return found + (f"envoy_server_uptime{{}} {uptime}\n" if uptime is not None else "")


A = 'x_requests{policy="a"}'


def test_a_counter_goes_on_where_it_was_after_a_restart() -> None:
    counters = Monotone()
    counters.read(text(10, 100), 0.0, "x_")
    counters.read(text(12, 105), 5.0, "x_")
    assert counters.values[A] == 12
    counters.read(text(15, 2), 10.0, "x_")  # more than before, and yet another process
    assert counters.values[A] == 27
    counters.read(text(16, 3), 11.0, "x_")
    assert counters.values[A] == 28
    assert counters.resets == 1
    assert "other" not in counters.values


def test_a_counter_that_fell_is_a_restart_even_without_the_uptime() -> None:
    counters = Monotone()
    counters.read(text(10), 0.0, "x_")
    counters.read(text(3), 1.0, "x_")
    assert counters.values[A] == 13


def test_series_that_a_restarted_envoy_has_not_counted_yet_stay() -> None:
    counters = Monotone()
    counters.read(text(10, 100), 0.0, "x_")
    counters.read("envoy_server_uptime{} 0\n", 5.0, "x_")
    assert counters.values[A] == 10


@given(st.lists(st.tuples(st.integers(0, 50), st.booleans()), max_size=30))
def test_no_sequence_of_readings_lets_a_counter_fall(steps: list[tuple[int, bool]]) -> None:
    counters, value, up, now, last = Monotone(), 0, 0.0, 0.0, 0.0
    for more, restarted in steps:
        now += 5
        value, up = (more, 0.0) if restarted else (value + more, up + 5)
        counters.read(text(value, int(up)), now, "x_")
        assert counters.values[A] >= last
        last = counters.values[A]


def test_a_series_is_split_into_name_and_labels() -> None:
    assert split('a{b="c",d="e\\"f\\\\"}') == ("a", {"b": "c", "d": 'e"f\\'})
    assert split("a") == ("a", {})
    assert list(parse("# x\n\na 1\nb{} 2.5\nbroken\nc NaNs\n")) == [("a", 1.0), ("b{}", 2.5)]


@given(
    st.dictionaries(st.sampled_from("abc"), st.text(st.characters(codec="utf-8", exclude_characters="\r"), max_size=9))
)
def test_what_is_exposed_is_read_back_by_the_official_parser(labels: dict[str, str]) -> None:
    families = Families()
    families.add("funicular_requests_total", label_text(labels), 2)
    families.add("funicular_requests_total", label_text(labels), 0.5)
    (family,) = text_string_to_metric_families(families.render())
    (sample,) = family.samples
    assert (sample.labels, sample.value) == (labels, 2.5)


def test_a_file_is_replaced_only_when_it_differs(tmp_path: Path) -> None:
    files = Files(tmp_path)
    files.prepare("cds", "sds")
    assert files.write("cds/cds.json", b"1")
    assert not files.write("cds/cds.json", b"1")
    assert not Files(tmp_path).write("cds/cds.json", b"1")
    assert files.write("cds/cds.json", b"1", force=True)
    assert files.write("cds/cds.json", b"2")
    assert not files.write_if_absent("cds/cds.json", b"3")
    files.write("sds/key.json", b"k", private=True)
    assert (tmp_path / "sds" / "key.json").stat().st_mode & 0o777 == 0o600
    assert files.names("cds") == ["cds.json"]
    files.remove("cds/cds.json")
    assert files.read("cds/cds.json") is None


def test_a_folder_that_cannot_be_written_to_is_the_users_to_mend(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserMustFix):
        Files(tmp_path / "file" / "below").prepare()


def test_the_same_content_is_the_same_version() -> None:
    assert document([{"a": 1}]) == document([{"a": 1}])
    assert document([{"a": 1}])[1] != document([{"a": 2}])[1]
    assert secret_value(document([{"generic_secret": {"secret": {"inline_string": "x"}}}])[0]) == "x"
    assert secret_value(b"{") is None
    assert secret_value(None) is None


@pytest.mark.parametrize(
    ("value", "good"),
    [
        pytest.param("sk-1", True, id="a key"),
        pytest.param("", False, id="nothing"),
        pytest.param("a\nb", False, id="two lines"),
        pytest.param("a\x00", False, id="a control character"),
    ],
)
def test_what_a_header_may_hold(value: str, good: bool) -> None:
    assert usable(value) == good


def test_series_of_policies_that_are_gone_end_with_the_envoy_that_counted_them() -> None:
    counters = Monotone()
    counters.read(text(10, 100), 0.0, "x_")
    counters.read("envoy_server_uptime{} 0\n", 5.0, "x_", lambda series: series == A)
    assert counters.values == {A: 10}
