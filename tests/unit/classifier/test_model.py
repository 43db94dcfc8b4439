"""The reference model: thresholds, labels, its file, and that the file in the package is what the script makes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import orjson
import pytest

from funicular.classifier import train_reference
from funicular.classifier.made_prompts import AUDIENCES, EASY, HARD, SLOT, make_prompt, make_prompts
from funicular.classifier.model import Model, ModelUnusable, load, save
from funicular.classifier.reading import Reason

EASY_ASK = "Where is my order 70211?"
HARD_ASK = "Prove that the square root of 13 is irrational and explain every step of the proof."


@pytest.fixture(scope="module")
def model() -> Model:
    return load()


def body(text: str) -> bytes:
    return orjson.dumps({"messages": [{"role": "user", "content": text}]})


def test_easy_only_from_the_threshold_on(model: Model) -> None:
    score = model.classify(body("Compare two kettles for me, please.")).score
    assert 0.0 < score < 1.0
    assert model.classify(body("Compare two kettles for me, please."), score).label == "easy"
    assert model.classify(body("Compare two kettles for me, please."), score + 0.0001).label == "hard"


@pytest.mark.parametrize("threshold", [0.0, 0.5, 0.7, 1.0])
@pytest.mark.parametrize("text", [EASY_ASK, HARD_ASK, "why", "Wo bleibt denn bitte mein Paket aus Bielefeld"])
def test_the_score_does_not_depend_on_the_threshold(model: Model, text: str, threshold: float) -> None:
    answer = model.classify(body(text), threshold)
    assert answer.score == model.classify(body(text)).score
    assert answer.label == "hard" or answer.score >= threshold


def test_what_is_not_routed_is_hard(model: Model) -> None:
    answer = model.classify(body(EASY_ASK), 0.5, ("hard",))
    assert (answer.label, answer.reason) == ("hard", Reason.NOT_ROUTED)


def test_unreadable_is_hard_even_at_threshold_0(model: Model) -> None:
    assert model.classify(b"{", 0.0) == ("hard", 0.0, Reason.UNREADABLE)


def test_unknown_words_are_out_of_the_window(model: Model) -> None:
    answer = model.classify(body("Здравствуйте, где мой заказ и когда он придёт, пожалуйста?"), 0.0)
    assert (answer.label, answer.reason) == ("hard", Reason.UNKNOWN_WORDS)


def test_the_users_of_the_demo_are_judged_well(model: Model) -> None:
    prompts = make_prompts(5, 1_000, "users")
    right = sum(model.classify(body(p.text), 0.7).label == p.label for p in prompts)
    assert right >= 950


def test_small_talk_does_not_make_a_question_hard(model: Model) -> None:
    talk = "It has been a long week and I am a little tired today. I have been a customer for years and I like your team a lot. "
    assert model.classify(body(talk * 3 + EASY_ASK), 0.7).label == "easy"
    assert model.classify(body("Prove that 2 is prime by contradiction."), 0.7).label == "hard"


def test_a_saved_model_answers_as_before(model: Model, tmp_path: Path) -> None:
    save(tmp_path / "m.npz", model.weights, model.metadata)
    again = load(tmp_path / "m.npz")
    for prompt in make_prompts(6, 50, "conformance"):
        assert again.classify(body(prompt.text)) == model.classify(body(prompt.text))


@pytest.mark.parametrize("content", [b"", b"no model", b"PK\x03\x04 broken"])
def test_what_is_no_model_is_refused_with_a_remedy(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "m.npz").write_bytes(content)
    with pytest.raises(ModelUnusable, match="not a model") as caught:
        load(tmp_path / "m.npz")
    assert caught.value.remedy


def test_a_missing_model_is_refused() -> None:
    with pytest.raises(ModelUnusable, match="No such file"):
        load("/does/not/exist.npz")


def test_golden_prompts_guard_the_weights(model: Model, tmp_path: Path) -> None:
    golden = model.metadata.golden
    changed = golden[0].model_copy(update={"score": golden[0].score - 0.1})
    save(tmp_path / "m.npz", model.weights, model.metadata.model_copy(update={"golden": (changed, *golden[1:])}))
    with pytest.raises(ModelUnusable, match="golden prompt 0"):
        load(tmp_path / "m.npz")


def test_the_packaged_model_is_what_the_script_makes(model: Model) -> None:
    trained = train_reference.train()
    assert trained.metadata.data_hash == model.metadata.data_hash
    assert trained.metadata.held_out_accuracy == pytest.approx(model.metadata.held_out_accuracy, abs=0.003)
    assert np.allclose(trained.weights.words, model.weights.words, atol=0.01)
    assert model.metadata.held_out_accuracy > 0.9


# --- made prompts -----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("template", [*EASY, *HARD])
def test_every_template_has_a_slot(template: str) -> None:
    assert SLOT.search(template)


def test_audiences_share_no_string() -> None:
    texts = [{p.text for p in make_prompts(1, 6_000, audience)} for audience in AUDIENCES]
    assert not texts[0] & texts[1]
    assert not texts[0] & texts[2]
    assert not texts[1] & texts[2]


def test_prompts_are_a_function_of_the_seed() -> None:
    assert make_prompts(3, 20, "users") == make_prompts(3, 20, "users")
    assert make_prompts(3, 20, "users") != make_prompts(4, 20, "users")


def test_no_slot_is_left_open() -> None:
    import random

    for label, templates in (("easy", EASY), ("hard", HARD)):
        for index in range(len(templates)):
            text = make_prompt(random.Random(0), label, "users", template=index, small_talk=False).text  # type: ignore[arg-type]
            assert not SLOT.search(text)
