"""What users say of answers: `POST /v1/feedback` as a pure function of body, keys and time, and the counters it moves.

Called by the server. Counters may never fall (Prometheus would read a reset), yet a changed thumb should move: so a vote
rests SETTLE seconds before it is counted, and until then the last one wins. A later change counts the new kind as well
and says so. One answer counts once a kind on each pod, within the last REMEMBERED votes.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import orjson

from funicular.agent.identity import AnswerId, BadId, read_id

LIMIT = 64 << 10
SETTLE = 3.0
REMEMBERED = 50_000
SERIES = 50_000  # signed ids bound the labels, but revisions of a month add up
THUMBS = ("thumbs_up", "thumbs_down")


@dataclass(frozen=True, slots=True)
class Refused(Exception):
    """An answer in OpenAI's style."""

    status: int
    message: str
    code: str

    def body(self) -> bytes:
        error = {"message": self.message, "type": "invalid_request_error", "param": None, "code": self.code}
        return orjson.dumps({"error": error})


@dataclass(frozen=True, slots=True)
class Vote:
    """`topic`: what is judged once an answer; `kind`: how."""

    topic: str
    kind: str
    rating: float = 0.0


@dataclass(slots=True)
class _Held:
    answer: AnswerId | None  # None: it is counted
    vote: Vote
    at: float
    kinds: frozenset[str] = frozenset()  # what this answer's topic was counted as already: once a kind, for ever

    @property
    def counted(self) -> bool:
        return self.answer is None


def parse(body: bytes, keys: tuple[bytes, ...], now: float) -> tuple[str, AnswerId, list[Vote]]:
    """Raises Refused: 413, 400 (no JSON, no id), 401 (not signed by us, too old), 422 (nothing that can be counted)."""
    if len(body) > LIMIT:
        raise Refused(413, "The body is larger than 64 KB.", "request_too_large")
    try:
        sent = orjson.loads(body)
    except orjson.JSONDecodeError:
        raise Refused(400, "The body is not JSON.", "invalid_json") from None
    if not isinstance(sent, dict):
        raise Refused(400, "The body is not a JSON object.", "invalid_json")
    text = sent.get("id")
    if not isinstance(text, str):
        raise Refused(400, "The member 'id' is missing: send the answer's x-funicular-id header.", "missing_id")
    votes = list(_votes(sent))
    if not votes:
        raise Refused(422, "Nothing to count: send 'thumb', 'rating', 'resolved' or 'escalated'.", "missing_feedback")
    try:
        return text, read_id(text, keys, now), votes
    except BadId as exc:
        raise Refused(401, str(exc), "invalid_id") from exc


def _votes(sent: Mapping[str, Any]) -> Iterator[Vote]:
    if (thumb := sent.get("thumb")) is not None:
        if thumb not in ("up", "down"):
            raise Refused(422, "'thumb' is 'up' or 'down'.", "invalid_thumb")
        yield Vote("thumb", f"thumbs_{thumb}")
    if (rating := sent.get("rating")) is not None:
        if isinstance(rating, bool) or not isinstance(rating, int | float) or not 0 <= rating <= 1:
            raise Refused(
                422, "'rating' is a number from 0 to 1; divide stars by their largest number.", "invalid_rating"
            )
        yield Vote("rating", "rating", float(rating))
    for name in ("resolved", "escalated"):
        if (said := sent.get(name)) is not None:
            if not isinstance(said, bool):
                raise Refused(422, f"'{name}' is true or false.", f"invalid_{name}")
            yield Vote(name, name if said else f"not_{name}")


Labels = tuple[str, str, str, str, str]  # namespace, policy, revision, arm, candidate


class FeedbackBook:
    """Counters by labels: `kinds[(labels, kind)]`, `replicates[(labels without candidate, replicate, kind)]`, ratings."""

    def __init__(self) -> None:
        self._held: OrderedDict[tuple[str, str], _Held] = OrderedDict()
        self._resting: OrderedDict[tuple[str, str], None] = OrderedDict()
        self.kinds: dict[tuple[Labels, str], int] = {}
        self.replicates: dict[tuple[Labels, int, str], int] = {}
        self.ratings: dict[Labels, list[float]] = {}  # sum, count

    def take(self, text: str, answer: AnswerId, votes: list[Vote], now: float) -> int:
        """How many of the votes are new or changed. `text` is the id itself."""
        self.settle(now)
        news = 0
        for vote in votes:
            key = (text[-32:], vote.topic)  # the signature stands for the id
            held = self._held.get(key)
            if held is not None and (held.vote == vote or vote.kind in held.kinds):
                continue
            news += 1
            if held is not None and not held.counted:
                held.vote = vote
                continue
            if held is not None and vote.topic == "rating":
                continue  # a mean cannot take back what it summed
            self._held[key] = _Held(answer, vote, now, held.kinds if held is not None else frozenset())
            self._held.move_to_end(key)
            self._resting[key] = None
        while len(self._held) > REMEMBERED:
            key, oldest = self._held.popitem(last=False)
            if not oldest.counted:
                self._resting.pop(key, None)
                self._count(oldest)
        return news

    def settle(self, now: float) -> None:
        """Counts what has rested long enough. Called before each scrape."""
        while self._resting:
            key = next(iter(self._resting))
            held = self._held[key]
            if now - held.at < SETTLE:
                return
            del self._resting[key]
            self._count(held)

    def _count(self, held: _Held) -> None:
        a, vote = held.answer, held.vote
        if a is None:
            return
        held.answer, held.kinds = None, held.kinds | {vote.kind}
        labels = (a.namespace, a.policy, a.revision, a.arm, a.candidate)
        if vote.topic == "rating":
            if labels in self.ratings or len(self.ratings) < SERIES:
                cell = self.ratings.setdefault(labels, [0.0, 0.0])
                cell[0] += vote.rating
                cell[1] += 1
            return
        self._add(self.kinds, (labels, vote.kind))
        if a.replicate is not None:
            self._add(self.replicates, ((*labels[:4], ""), a.replicate, vote.kind))

    @staticmethod
    def _add(cells: dict[Any, int], key: Any) -> None:
        if key in cells or len(cells) < SERIES:
            cells[key] = cells.get(key, 0) + 1
