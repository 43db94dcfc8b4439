"""Trains the reference model on made data and writes reference.npz: `python -m funicular.classifier.train_reference`.

Called by developers when features or templates change; the result is checked in. Seeded, a few seconds, and the same
everywhere up to rounding: the problem is strictly convex and solved until its gradient vanishes.

The sets are apart by *template*, since other slot values in the same template would flatter the model: the weights are
trained on one, Platt's calibration is fitted on the out-of-fold scores of that set, accuracy is measured on the templates
held out of both. The shipped weights are those that were measured.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from scipy.optimize import minimize
from scipy.sparse import csr_array

from funicular.classifier.features import KINDS, PAIRS, WORDS, extract
from funicular.classifier.made_prompts import Prompt, make_prompts
from funicular.classifier.model import REFERENCE, Golden, Metadata, Model, Weights, digest, save

SEED = 20_240_611
COUNT = 12_000
FOLDS = 5
RIDGE = 2.0
NOTE = (
    "Made data: sentences from templates of support questions (easy) and of multi-step reasoning, code and legal work (hard). "
    "No real user wrote any of them; the figures say nothing about your endpoint."
)
GOLDEN = [
    [{"role": "user", "content": "Where is my order 48213?"}],
    [{"role": "system", "content": "You are a support agent."}, {"role": "user", "content": "How do I reset my password?"}],
    [{"role": "user", "content": [{"type": "text", "text": "What does the Plus plan cost per month?"}]}],
    [{"role": "user", "content": "Prove that the square root of 7 is irrational and explain every step of the proof."}],
    [{"role": "user", "content": "Compare optimistic and pessimistic locking, analyse the failure modes and justify one."}],
    [{"role": "user", "content": "Здравствуйте, где мой заказ номер 48213 и когда он придёт?"}],
    [{"role": "user", "content": " "}],
]  # fmt: skip


def design_matrix(prompts: Sequence[Prompt]) -> tuple[csr_array, NDArray[np.bool_]]:
    """One row a prompt, columns words | pairs | kinds, scaled as Weights.logit scales them; and which words occurred."""
    rows: list[NDArray[np.intp]] = []
    columns: list[NDArray[np.intp]] = []
    values: list[NDArray[np.float64]] = []
    seen = np.zeros(WORDS, np.bool_)
    for row, prompt in enumerate(prompts):
        features = extract(prompt.text)
        seen[features.words] = True
        for offset, places in ((0, features.words), (WORDS, features.pairs)):
            columns.append(places.astype(np.intp) + offset)
            values.append(np.full(places.size, 1.0 / np.sqrt(max(places.size, 1))))
            rows.append(np.full(places.size, row))
        columns.append(np.arange(len(KINDS)) + WORDS + PAIRS)
        values.append(features.kinds.astype(np.float64))
        rows.append(np.full(len(KINDS), row))
    shape = (len(prompts), WORDS + PAIRS + len(KINDS))
    matrix = csr_array((np.concatenate(values), (np.concatenate(rows), np.concatenate(columns))), shape=shape)
    return matrix, seen


def fit(matrix: csr_array, labels: NDArray[np.float64], ridge: float) -> NDArray[np.float64]:
    """Logistic regression with an L2 penalty (not on the bias, which is the last value)."""
    used = np.unique(matrix.indices)  # the penalty leaves a column that never occurs at 0
    theta = np.zeros(matrix.shape[1] + 1)
    theta[np.append(used, -1)] = fit_dense(csr_array(matrix[:, used]), labels, ridge)
    return theta


def fit_dense(matrix: csr_array, labels: NDArray[np.float64], ridge: float) -> NDArray[np.float64]:
    """The same, where every column occurs."""
    transposed = matrix.T.tocsr()
    signs = 2.0 * labels - 1.0

    def loss(theta: Any) -> tuple[float, Any]:
        margins = signs * (matrix @ theta[:-1] + theta[-1])
        pull = -signs / (1.0 + np.exp(np.clip(margins, -500, 500)))
        gradient = np.append(transposed @ pull + ridge * theta[:-1], pull.sum())
        return float(np.logaddexp(0.0, -margins).sum() + 0.5 * ridge * theta[:-1] @ theta[:-1]), gradient

    start = np.zeros(matrix.shape[1] + 1)
    return np.asarray(
        minimize(loss, start, jac=True, method="L-BFGS-B", options={"maxiter": 5_000, "gtol": 1e-6, "ftol": 1e-14}).x
    )


def calibration(logits: NDArray[np.float64], labels: NDArray[np.float64]) -> tuple[float, float]:
    """Platt's slope and shift."""
    theta = fit(csr_array(logits[:, None]), labels, ridge=1e-3)
    return float(theta[0]), float(theta[1])


def train(seed: int = SEED, count: int = COUNT) -> Model:
    """The whole training. Pure but for the time it takes."""
    prompts = make_prompts(seed, count, "train")
    known = [p for p in prompts if not p.held_out]
    held_out = [p for p in prompts if p.held_out]
    matrix, seen = design_matrix(known)
    labels = np.array([p.label == "easy" for p in known], np.float64)
    # Out-of-fold by template: a score for a template whose siblings the weights had seen would be too sure of itself.
    folds = np.array([(p.template - p.template // 4) % FOLDS for p in known])
    logits = np.zeros(len(known))
    for fold in range(FOLDS):
        theta = fit(csr_array(matrix[folds != fold]), labels[folds != fold], RIDGE)
        logits[folds == fold] = matrix[folds == fold] @ theta[:-1] + theta[-1]
    slope, shift = (round(x, 4) for x in calibration(logits, labels))
    theta = fit(matrix, labels, RIDGE)
    # Rounded so that another machine's last bits give the same file; weights that round to nothing are not stored.
    table = np.round(theta, 4).astype(np.float32)
    words, pairs, kinds = table[:WORDS], table[WORDS : WORDS + PAIRS], table[WORDS + PAIRS : -1]
    doubt = round(1.0 / (len({(p.label, p.template) for p in known}) + 2), 4)
    weights = Weights(words, pairs, kinds, seen, float(table[-1]), slope, shift, doubt)
    return describe(weights, seed, known, held_out)


def describe(weights: Weights, seed: int, known: Sequence[Prompt], held_out: Sequence[Prompt]) -> Model:
    """Measures the weights on the held-out templates and records the golden answers."""
    scores = np.array([weights.probability(extract(p.text)) for p in held_out])
    easy = np.array([p.label == "easy" for p in held_out])
    data_hash = digest([[p.text, p.label] for p in known])
    weights_hash = digest(*(np.round(t, 2).tolist() for t in (weights.words, weights.pairs)))
    calibration_id = digest(data_hash, weights_hash, weights.slope, weights.shift, weights.doubt)[:12]
    metadata = Metadata(
        name="reference",
        version=f"reference-1-{calibration_id[:8]}",
        calibration_id=calibration_id,
        data_hash=data_hash,
        data_note=NOTE,
        seed=seed,
        trained_on=len(known),
        held_out=len(held_out),
        held_out_accuracy=round(float(((scores >= 0.5) == easy).mean()), 4),
        held_out_easy_precision_at_070=round(float(easy[scores >= 0.7].mean()), 4) if (scores >= 0.7).any() else 0.0,
        golden=(Golden(body="{}", label="hard", score=0.0),) * 2,
    )
    model = Model(weights, metadata)
    golden = []
    for messages in GOLDEN:
        body = json.dumps({"model": "any", "messages": messages}, ensure_ascii=False)
        answer = model.classify(body.encode())
        golden.append(Golden(body=body, label=answer.label, score=answer.score))
    return Model(weights, metadata.model_copy(update={"golden": tuple(golden)}))


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m funicular.classifier.train_reference", description=__doc__)
    parser.add_argument("--out", type=Path, default=REFERENCE, help="the file to write")
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--count", type=int, default=COUNT, help="made prompts, held-out ones included")
    options = parser.parse_args(arguments)
    model = train(options.seed, options.count)
    save(options.out, model.weights, model.metadata)
    table = Table("what", "value", title=f"{options.out} ({options.out.stat().st_size / 1024:.0f} kB)")
    for name, value in model.metadata.model_dump(exclude={"golden"}).items():
        table.add_row(name, str(value))
    for golden in model.metadata.golden:
        table.add_row(f"golden: {golden.label} {golden.score:.4f}", golden.body)
    Console().print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
