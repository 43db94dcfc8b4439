"""The reference model: a dot product over hashed words and pairs of words, trained on made data (made_prompts.py).

Called by the server for every request and by train_reference. The file is an NPZ without pickles; its metadata say on what
it was trained, how well it did on held-out templates, and which golden prompts it must still answer as recorded. It is an
honest stand-in: it separates support questions from multi-step work in English, and calls everything else hard.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from funicular.classifier.features import KINDS, PAIRS, WORDS, Features, extract
from funicular.classifier.reading import Reason, read
from funicular.errors import UserMustFix

REFERENCE = Path(__file__).with_name("reference.npz")
LABELS = ("easy", "hard")
GOLDEN_TOLERANCE = 0.002
# At least this share of a text's words must have occurred in training; below, the text is out of the model's window.
KNOWN_ENOUGH = 0.4


class ModelUnusable(UserMustFix):
    """The model file is missing, is no model, or does not give its golden prompts' recorded answers."""


class Golden(BaseModel):
    """A request's body and the answer that was recorded when the model was trained, at threshold 0.5."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    body: str
    label: str
    score: float


class Metadata(BaseModel):
    """What a model file says about itself."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    format: int = 1
    name: str
    version: str
    calibration_id: str
    data_hash: str = Field(description="SHA-256 over every prompt and label it was trained on")
    data_note: str
    seed: int
    trained_on: int
    held_out: int
    held_out_accuracy: float
    held_out_easy_precision_at_070: float
    golden: tuple[Golden, ...] = Field(min_length=2)


class Answer(NamedTuple):
    """`score`: the probability that the cheap route is good enough, rounded to the four decimals that are sent."""

    label: str
    score: float
    reason: Reason


@dataclass(frozen=True, slots=True)
class Weights:
    """`words` and `pairs` are added up over a text and divided by the root of their number; `seen` marks trained words."""

    words: NDArray[np.float32]
    pairs: NDArray[np.float32]
    kinds: NDArray[np.float32]
    seen: NDArray[np.bool_]
    bias: float
    slope: float
    shift: float
    doubt: float

    def logit(self, features: Features) -> float:
        """The log odds of `easy` before calibration."""
        total = self.bias + float(self.kinds @ features.kinds)
        if features.words.size:
            total += float(self.words[features.words].sum()) / math.sqrt(features.words.size)
        if features.pairs.size:
            total += float(self.pairs[features.pairs].sum()) / math.sqrt(features.pairs.size)
        return total

    def probability(self, features: Features) -> float:
        """Calibrated by Platt's method on templates that the weights had not seen, and never quite sure.

        `doubt` is what a rule of succession leaves after as many independent cases as there were templates.
        """
        calibrated = self.slope * self.logit(features) + self.shift
        return self.doubt + (1.0 - 2.0 * self.doubt) / (1.0 + math.exp(-max(-60.0, min(60.0, calibrated))))

    def known(self, features: Features) -> float:
        """The share of the text's words that occurred in training."""
        return float(self.seen[features.words].mean()) if features.words.size else 0.0


@dataclass(frozen=True, slots=True)
class Model:
    """A loaded model. Immutable, safe to share."""

    weights: Weights
    metadata: Metadata

    def classify(
        self, body: bytes, threshold: float = 0.5, labels: tuple[str, ...] = LABELS, *, cut: bool = False
    ) -> Answer:
        """Judges one request. `easy` only for a readable text inside the training window with a score of at least `threshold`."""
        reading = read(body, cut=cut)
        if reading.reason is not Reason.MODEL:
            return Answer("hard", 0.0, reading.reason)
        features = extract(reading.text)
        if self.weights.known(features) < KNOWN_ENOUGH:
            return Answer("hard", 0.0, Reason.UNKNOWN_WORDS)
        score = round(self.weights.probability(features), 4)
        if score < threshold:
            return Answer("hard", score, Reason.MODEL)
        if "easy" not in labels:
            return Answer("hard", score, Reason.NOT_ROUTED)
        return Answer("easy", score, Reason.MODEL)

    def failed_golden(self) -> str | None:
        """A sentence about the first golden prompt that is not answered as recorded, None when all are."""
        for index, golden in enumerate(self.metadata.golden):
            answer = self.classify(golden.body.encode())
            if answer.label != golden.label or abs(answer.score - golden.score) > GOLDEN_TOLERANCE:
                return (f"golden prompt {index} gave {answer.label} {answer.score:.4f}, "
                        f"recorded was {golden.label} {golden.score:.4f}")  # fmt: skip
        return None


def save(path: Path, weights: Weights, metadata: Metadata) -> None:
    """Writes a model file. Tables are stored sparse: most buckets were never hit."""
    arrays: dict[str, NDArray[Any]] = {
        "kinds": weights.kinds,
        "seen": np.flatnonzero(weights.seen).astype(np.uint32),
        "scalars": np.array([weights.bias, weights.slope, weights.shift, weights.doubt], np.float64),
        "metadata": np.frombuffer(metadata.model_dump_json().encode(), np.uint8),
    }
    for name, table in (("words", weights.words), ("pairs", weights.pairs)):
        places = np.flatnonzero(table)
        arrays[f"{name}_places"] = places.astype(np.uint32)
        arrays[f"{name}_values"] = table[places]
    buffer = io.BytesIO()
    np.savez_compressed(buffer, allow_pickle=False, **arrays)
    temporary = path.with_name(path.name + ".part")
    temporary.write_bytes(buffer.getvalue())
    os.replace(temporary, path)


def load(path: str | Path | None = None) -> Model:
    """Reads a model file; without a path the reference that comes with the package. Raises ModelUnusable."""
    source = Path(path) if path else REFERENCE
    remedy = "give --model a file that funicular.classifier.train_reference wrote, or leave it out"
    try:
        with source.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            metadata = Metadata.model_validate_json(arrays["metadata"].tobytes())
            bias, slope, shift, doubt = (float(x) for x in arrays["scalars"])
            seen = np.zeros(WORDS, np.bool_)
            seen[arrays["seen"]] = True
            tables = []
            for name, size in (("words", WORDS), ("pairs", PAIRS)):
                table = np.zeros(size, np.float32)
                table[arrays[f"{name}_places"]] = arrays[f"{name}_values"]
                tables.append(table)
            kinds = np.asarray(arrays["kinds"], np.float32)
    except OSError as error:
        raise ModelUnusable(
            f"cannot read the model {source}: {error.strerror or error}", field="model", remedy=remedy
        ) from error
    except Exception as error:  # numpy, zipfile and pydantic each have their own ways to say that this is no model
        raise ModelUnusable(f"{source} is not a model file: {error}", field="model", remedy=remedy) from error
    if kinds.shape != (len(KINDS),):
        raise ModelUnusable(f"{source} was made for other features", field="model", remedy=remedy)
    model = Model(Weights(tables[0], tables[1], kinds, seen, bias, slope, shift, doubt), metadata)
    failed = model.failed_golden()
    if failed:
        raise ModelUnusable(f"{source}: {failed}", field="model", remedy="train the model again with this version")
    return model


def digest(*parts: object) -> str:
    """A SHA-256 over JSON-able parts, for names that change when what they name changes."""
    hasher = hashlib.sha256()
    for part in parts:
        hasher.update(part if isinstance(part, bytes) else json.dumps(part, sort_keys=True).encode())
        hasher.update(b"\0")
    return hasher.hexdigest()
