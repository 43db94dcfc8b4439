"""The population: sticky, skewed, seeded, and never the training strings."""

from __future__ import annotations

from collections import Counter

import orjson
import pytest

from funicular.classifier.made_prompts import make_prompts
from hack.sim.users import Habits, Place, Population


def test_the_same_seed_asks_the_same() -> None:
    one, other = Population(seed=3), Population(seed=3)
    assert [one.ask() for _ in range(50)] == [other.ask() for _ in range(50)]
    assert Population(seed=4).ask().body != Population(seed=3).ask().body


def test_an_id_stands_where_the_user_puts_it() -> None:
    population = Population(Habits(users=200, body_share=0.3, nowhere_share=0.2))
    for _ in range(500):
        ask = population.ask()
        body = orjson.loads(ask.body)
        assert ("x-user-id" in ask.headers) == (ask.user.place is Place.HEADER)
        assert ("user" in body) == (ask.user.place is Place.BODY)
        assert body["metadata"] == {"request": ask.number, "difficulty": ask.difficulty}
    places = Counter(user.place for user in population.users)
    assert places[Place.BODY] == pytest.approx(60, abs=25)
    assert places[Place.NOWHERE] == pytest.approx(40, abs=20)


def test_activity_is_skewed() -> None:
    population = Population(Habits(users=1_000, zipf=1.0))
    counts = Counter(population.ask().user.id for _ in range(5_000))
    top = sum(count for _, count in counts.most_common(100))
    assert top > 2_000


def test_shares_are_kept_on_average() -> None:
    population = Population(Habits(users=500, hard_share=0.3, stream_share=0.4))
    asks = [population.ask() for _ in range(4_000)]
    assert sum(a.difficulty == "hard" for a in asks) / 4_000 == pytest.approx(0.3, abs=0.05)
    assert sum(a.stream for a in asks) / 4_000 == pytest.approx(0.4, abs=0.03)


def test_users_differ_in_taste() -> None:
    users = Population(Habits(users=300, spread=0.1)).users
    assert len({user.up_if_good for user in users}) == 300
    assert sum(user.up_if_good for user in users) / 300 == pytest.approx(0.9, abs=0.03)
    assert len({user.up_if_good for user in Population(Habits(users=50, spread=0.0)).users}) == 1


def test_good_answers_get_more_thumbs_up() -> None:
    population = Population(Habits(users=50, vote_share=0.5))
    votes = {good: Counter(population.vote(u, good=good) for u in population.users * 60) for good in (True, False)}
    rates = {good: seen["up"] / (seen["up"] + seen["down"]) for good, seen in votes.items()}
    assert rates[True] > 0.8
    assert rates[False] < 0.3
    assert votes[True][None] / 3_000 == pytest.approx(0.5, abs=0.06)


def test_no_prompt_is_a_training_string() -> None:
    trained = {prompt.text for prompt in make_prompts(20_240_611, 12_000, "train")}
    population = Population(Habits(small_talk=False))
    asked = {orjson.loads(population.ask().body)["messages"][-1]["content"] for _ in range(2_000)}
    assert not asked & trained
