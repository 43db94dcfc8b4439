"""A population of users: who asks, how often, what, and how each of them votes.

Called by load. Activity is skewed as in real life (Zipf), ids are sticky, taste differs from user to user, and so requests are
*not* independent: statistics that take them for independent must fail on this population as they would in production. A
population is a function of its seed, but for the order in which answers come back.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from enum import StrEnum
from itertools import accumulate
from typing import Any, Literal

import orjson

from funicular.classifier.made_prompts import Label, make_prompt

Thumb = Literal["up", "down"]


class Place(StrEnum):
    """Where a user's id stands in a request."""

    HEADER = "x-user-id"
    BODY = "user"
    NOWHERE = "none"


@dataclass(frozen=True, slots=True)
class User:
    """`hard_share`: of this user's questions; `votes`: probability of voting at all; `up_*`: of a thumb up, given the answer."""

    id: str
    place: Place
    hard_share: float
    votes: float
    up_if_good: float
    up_if_bad: float


@dataclass(frozen=True, slots=True)
class Habits:
    """What a population is like. Shares are means over users; each user differs around them."""

    users: int = 2_000
    zipf: float = 0.8
    body_share: float = 0.15
    nowhere_share: float = 0.03
    hard_share: float = 0.3
    stream_share: float = 0.4
    include_usage_share: float = 0.5
    vote_share: float = 0.3
    up_if_good: float = 0.9
    up_if_bad: float = 0.2
    spread: float = 0.08
    small_talk: bool = True


@dataclass(frozen=True, slots=True)
class Ask:
    """One request, ready to be sent. `number` comes back in the provider's list of failures."""

    number: str
    user: User
    body: bytes
    headers: dict[str, str]
    stream: bool
    difficulty: Label


class Population:
    """Draws users and their requests. Not for several threads."""

    def __init__(self, habits: Habits | None = None, *, model: str = "support-chat", seed: int = 0,
                 client_key: str = "client-key") -> None:  # fmt: skip
        self.habits = habits or Habits()
        self.model = model
        self.client_key = client_key
        self._rng = random.Random(seed)
        self._prefix = f"{seed:x}"
        self._sent = 0
        self.users = [self._make_user(index) for index in range(self.habits.users)]
        ranks = list(range(1, self.habits.users + 1))
        # Shuffled, so that neither a user's place nor taste goes with activity.
        self._rng.shuffle(ranks)
        self._weights = list(accumulate(rank**-self.habits.zipf for rank in ranks))

    def _make_user(self, index: int) -> User:
        habits, rng = self.habits, self._rng
        throw = rng.random()
        if throw < habits.nowhere_share:
            place = Place.NOWHERE
        else:
            place = Place.BODY if throw < habits.nowhere_share + habits.body_share else Place.HEADER
        return User(
            id=f"user-{self._prefix}-{index:05d}",
            place=place,
            hard_share=_around(habits.hard_share, habits.spread, rng),
            votes=_around(habits.vote_share, habits.spread, rng),
            up_if_good=_around(habits.up_if_good, habits.spread, rng),
            up_if_bad=_around(habits.up_if_bad, habits.spread, rng),
        )

    def ask(self) -> Ask:
        """The next request of somebody."""
        rng, habits = self._rng, self.habits
        user = rng.choices(self.users, cum_weights=self._weights)[0]
        difficulty: Label = "hard" if rng.random() < user.hard_share else "easy"
        prompt = make_prompt(rng, difficulty, "users", small_talk=habits.small_talk)
        stream = rng.random() < habits.stream_share
        self._sent += 1
        number = f"{self._prefix}-{self._sent}"
        request: dict[str, Any] = {
            "model": self.model,
            "messages": [
                {"role": "system", "content": "You are the friendly support agent of an online shop."},
                {"role": "user", "content": prompt.text},
            ],
            "metadata": {"request": number, "difficulty": difficulty},
        }
        if stream:
            request["stream"] = True
            if rng.random() < habits.include_usage_share:
                request["stream_options"] = {"include_usage": True}
        headers = {"content-type": "application/json", "authorization": f"Bearer {self.client_key}"}
        if user.place is Place.BODY:
            request["user"] = user.id
        elif user.place is Place.HEADER:
            headers["x-user-id"] = user.id
        return Ask(number, user, orjson.dumps(request), headers, stream, difficulty)

    def vote(self, user: User, *, good: bool) -> Thumb | None:
        """What the user thinks of an answer, None when nothing is said."""
        if self._rng.random() >= user.votes:
            return None
        return "up" if self._rng.random() < (user.up_if_good if good else user.up_if_bad) else "down"


def _around(mean: float, spread: float, rng: random.Random) -> float:
    """A probability around `mean`: Beta with standard deviation `spread`, or `mean` itself where there is no room."""
    room = mean * (1.0 - mean)
    if spread <= 0.0 or room <= spread**2:
        return mean
    strength = room / spread**2 - 1.0
    return rng.betavariate(mean * strength, (1.0 - mean) * strength)
