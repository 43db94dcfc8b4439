"""Made prompts: easy support questions and hard multi-step ones, from templates. No real user wrote any of them.

Called by train_reference (training and held-out data), by conformance (pairs of equal length and clearly different
difficulty) and by the simulated users of the demo. The three never share a string: every template has a slot, and every
audience fills slots from values of its own. The small talk around a request is drawn alike for both labels, so that length
says nothing about difficulty.
"""

from __future__ import annotations

import random
import re
from dataclasses import dataclass
from typing import Literal

Label = Literal["easy", "hard"]
Audience = Literal["train", "users", "conformance"]
AUDIENCES: tuple[Audience, ...] = ("train", "users", "conformance")

# Every audience takes each third value.
SLOTS: dict[str, list[str]] = {
    "product": ["headphones", "kettle", "rucksack", "desk lamp", "running shoes", "tablet", "coffee grinder", "tent",
                "keyboard", "winter jacket", "blender", "bike helmet", "office chair", "smart watch", "printer",
                "vacuum cleaner", "monitor", "sleeping bag"],
    "city": ["Lisbon", "Turin", "Oslo", "Leeds", "Graz", "Porto", "Ghent", "Malmo", "Cork", "Nantes", "Bergen", "Basel"],
    "person": ["Maria", "Jonas", "Aisha", "Peter", "Chen", "Olga", "Luis", "Fatima", "Henrik", "Nadia", "Tom", "Yuki"],
    "day": ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday"],
    "month": ["January", "March", "April", "June", "August", "September", "October", "November", "December"],
    "language": ["French", "Spanish", "German", "Italian", "Dutch", "Polish", "Swedish", "Danish", "Greek"],
    "colour": ["red", "blue", "green", "black", "white", "grey", "yellow", "orange", "brown"],
    "plan": ["Basic", "Plus", "Family", "Team", "Student", "Premium"],
    "carrier": ["DHL", "UPS", "the post office", "GLS", "FedEx", "a courier"],
    "program": ["Python", "Go", "Rust", "Java", "TypeScript", "C++", "Kotlin", "Scala", "Swift"],
    "database": ["PostgreSQL", "MySQL", "SQLite", "Cassandra", "Redis", "MongoDB"],
    "service": ["checkout", "billing", "search", "inventory", "login", "shipping", "pricing", "payments", "catalogue"],
    "country": ["Germany", "France", "Spain", "Ireland", "Norway", "Portugal", "Austria", "Belgium", "Italy"],
    "animal": ["otter", "falcon", "badger", "heron", "lynx", "hedgehog"],
}  # fmt: skip

# Parts of a number's name are disjoint too: an order number of one audience never occurs in another.
NUMBER_BASE: dict[Audience, int] = {"train": 10_000, "users": 40_000, "conformance": 70_000}

EASY: list[str] = [
    "Where is my order {order}?",
    "Has order {order} been shipped yet?",
    "What are your opening hours on {day}?",
    "How do I reset my password? My user name is {person}{small}.",
    "Can I return the {product} I bought on {day}?",
    "Do you have the {product} in {colour}?",
    "How much is shipping to {city}?",
    "What is the phone number of your shop in {city}?",
    "Please change my e-mail address to {person}{small}@example.com.",
    "How do I cancel the {plan} plan?",
    "What does the {plan} plan cost per month?",
    "Is the {product} still in stock?",
    "Which carrier delivers order {order}, is it {carrier}?",
    "Translate 'good morning, {person}' into {language}.",
    "How do you say '{colour} {product}' in {language}?",
    "Rewrite this politely: send me the {product} now.",
    "Give me a short title for a review of a {product}.",
    "Is this review positive or negative? 'I love my {colour} {product}.'",
    "Extract the order number from this sentence: the parcel {order} never came.",
    "What is the capital of {country}?",
    "Which day comes after {day}?",
    "Fix the spelling: the {product} arived on {day} and I am hapy.",
    "Make this one sentence shorter: the {product} that I have bought is a very nice {colour} one.",
    "Write a one-line thank-you note to {person} for the {product}.",
    "Put these in alphabetical order: {product}, {animal}, {colour}.",
    "I want to speak to a human about order {order}.",
    "Please send me the invoice for order {order} again.",
    "Can I pay for the {product} with a gift card?",
    "What is the size of the {product} box?",
    "Does the {product} come with a warranty?",
    "My discount code SAVE{small} does not work, what can I do?",
    "When will the {colour} {product} be back in stock?",
    "Can you deliver on {day} instead of {day}?",
    "Update the delivery address of order {order} to {small} Main Street, {city}.",
    "Hi, this is {person}. Can I pick up my {product} at the shop in {city}?",
    "How long does delivery to {country} take?",
    "Turn this into a bullet list: {product}, {product}, {product}.",
    "What currency do they use in {country}?",
    "Name three things I can do with a {product}.",
    "Convert {small} kilometres to miles.",
    "What time zone is {city} in?",
    "Write a friendly greeting for our customers in {city}.",
    "Is the shop in {city} open on {day}?",
    "How do I turn on the {product}?",
    "Please unsubscribe {person}{small}@example.com from the newsletter.",
    "How many items are in order {order}?",
    "Summarise in five words: the {product} is light, {colour} and cheap.",
    "What is the plural of '{animal}' in {language}?",
    "Did my refund of {small} euros for the {product} arrive?",
    "Say in one sentence what a {product} is.",
    "Where can I find the manual of the {product}?",
    "Please confirm my appointment on {day} with {person}.",
]

HARD: list[str] = [
    "Prove that the square root of {prime} is irrational, and explain where the proof fails for {square}.",
    (
        "A train leaves {city} at {small} km/h and another leaves {city} two hours later at {medium} km/h. Derive "
        "when and where they meet and show every step."
    ),
    (
        "Our {service} service deadlocks about once in {medium} requests. Explain how you would find the root cause "
        "and design an experiment for each hypothesis."
    ),
    (
        "Write a {program} function that merges overlapping intervals in a stream, prove its complexity and cover "
        "the edge cases with tests. Limit the buffer to {medium}."
    ),
    (
        "Refactor this {program} code so that it is thread safe: `def add(k, v): cache[k] = cache.get(k, {small}) + "
        "v`. Explain the race."
    ),
    (
        "Compare optimistic and pessimistic locking in {database} for the {service} service, with their failure "
        "modes, and recommend one with reasons."
    ),
    (
        "Draft a clause that limits liability for consequential loss under the law of {country}, and analyse whether "
        "a court would enforce it above {medium} euros."
    ),
    (
        "Analyse whether the non-compete in {person}'s contract is enforceable in {country}, consider the "
        "counterarguments and weigh the precedents."
    ),
    (
        "Design a migration of {medium} tables from {database} to {database} without downtime, with a rollback plan "
        "for each phase and its risks."
    ),
    (
        "Given three suppliers with costs {small}, {small} and {small} and capacities {medium} and {medium}, "
        "formulate the linear program and solve its dual."
    ),
    (
        "Explain step by step why this query is slow in {database} and rewrite it: SELECT * FROM orders o JOIN users "
        "u ON lower(u.mail) = lower(o.mail) WHERE o.total > {medium};"
    ),
    (
        "Estimate the causal effect of the {plan} plan's new price on churn from observational data; discuss "
        "confounders, an instrument, and how to falsify it."
    ),
    "The integral of x^{digit} e^(-x) from 0 to infinity: derive it by induction and generalise to real exponents.",
    (
        "Debug this: the {service} test passes alone but fails after {small} others. Reason about shared state, "
        "ordering and time, and propose a minimal reproduction."
    ),
    (
        "Implement a lock-free queue in {program}, argue its memory ordering, and show an interleaving that breaks a "
        "naive version with {small} threads."
    ),
    (
        "Derive the posterior of a conversion rate after {small} successes in {medium} trials with a Beta prior, and "
        "decide whether to stop the test."
    ),
    (
        "Two contracts for {person} contradict each other on termination. Interpret both under the law of {country}, "
        "reconcile them and justify the priority."
    ),
    (
        "Plan a {small}-week schedule for five teams with these dependencies, minimise the critical path and explain "
        "the trade-offs: design before {service}, {service} before launch."
    ),
    (
        "Critically evaluate the argument that free will is incompatible with determinism, steelman both sides and "
        "refute the weaker, using {person} as the example."
    ),
    (
        "Write a recursive descent parser in {program} for arithmetic with precedence and error recovery, and prove "
        "that it terminates on inputs of {medium} tokens."
    ),
    (
        "How would you detect fraud rings of {small} accounts among {medium} transactions? Compare graph algorithms, "
        "their complexity and false positive trade-offs."
    ),
    (
        "A patient, {person}, aged {small}, takes two anticoagulants. Weigh the interactions, rank the differential "
        "diagnoses and justify each step."
    ),
    (
        "Find the flaw in this proof that all {animal}s have the same colour, by induction on the number of "
        "{animal}s, and repair it where possible."
    ),
    (
        "Model the {service} service as an M/M/{digit} queue, derive the waiting time at {small} requests per second "
        "and discuss where the assumptions break."
    ),
    (
        "Optimise this {program} loop for cache locality and vectorisation and explain the assembly: for (i = 0; i < "
        "{medium}; i++) sum += a[i] * b[j[i]];"
    ),
    (
        "Assess the tax consequences when a company in {country} sells software to consumers in {country}; consider "
        "thresholds of {medium} euros, permanent establishment and treaties."
    ),
    (
        "Design an eventually consistent {service} system across {digit} regions, analyse the conflicts, and prove "
        "that your merge function is commutative and idempotent."
    ),
    "Solve for all integers n: n^2 + {small}n + {small} is a perfect square. Show the complete case analysis.",
    (
        "Here is a stack trace with a segmentation fault at 0x{medium} in the {program} extension. Reason about "
        "ownership and lifetimes and isolate the cause."
    ),
    (
        "Write the threat model of the {service} service: attackers, assets, attack trees, mitigations, and the "
        "residual risk of each, for {medium} tenants."
    ),
    (
        "Compare three architectures for real-time {service} at {medium} events per second, quantify latency against "
        "cost, and defend one against objections."
    ),
    (
        "Explain how the GDPR and the law of {country} interact when {person} asks to erase data that must be kept "
        "for audits; argue both positions."
    ),
    (
        "Prove by contradiction that there are infinitely many primes congruent to 3 modulo 4, then discuss why it "
        "does not carry over to 1 modulo {prime}."
    ),
    (
        "Reproduce and analyse Simpson's paradox in these numbers: {small} of {medium} treated and {small} of "
        "{medium} untreated recovered; which conclusion is causal?"
    ),
    (
        "Write a SQL query with window functions in {database} for the {small}-day retention by cohort, handle time "
        "zones and late events, and explain the plan."
    ),
    (
        "Derive the gradient of a softmax cross entropy layer, verify it numerically in {program} and explain the "
        "instability with logits near {medium}."
    ),
    (
        "Negotiate as a union for {medium} workers in {city}: analyse the interests, the alternatives of both sides, "
        "and design a three-phase strategy."
    ),
    (
        "Build a discounted cash flow valuation from revenues of {medium} growing by {small} per cent, justify the "
        "terminal value and run a sensitivity analysis."
    ),
    (
        "Given this dependency graph, find a topological order or prove that a cycle exists, and generalise to "
        "{medium} nodes: {service} -> {service} -> login."
    ),
    (
        "Contrast Kant's and Mill's judgement of a lie told to protect {person}, construct the strongest objection "
        "to each and resolve it."
    ),
    (
        "Our A/B test on the {service} page has a sample ratio mismatch of {small} per cent. Enumerate the "
        "mechanisms, and design a diagnosis for each."
    ),
    (
        "Why does this regular expression backtrack catastrophically: (a+)+b on {medium} characters? Prove the bound "
        "and rewrite it with the same language."
    ),
    (
        "Write a compiler pass in {program} that eliminates common subexpressions in SSA form, argue its correctness "
        "and analyse {small} corner cases."
    ),
    (
        "Evaluate the evidence for and against a minimum wage of {small} euros in {country}, identify the "
        "identification strategies and their threats."
    ),
    (
        "Calculate the orbit transfer from {medium} km to {medium} km with minimal delta v, derive the formula and "
        "compare with a bi-elliptic transfer."
    ),
    (
        "Reason through this puzzle: {person} always lies, {person} lies on {day}, and one says the other lies "
        "today. Which day is it, and is the solution unique?"
    ),
    (
        "Review this concurrency design for the {service} service with {small} workers; look for lost updates, "
        "starvation and priority inversion, and justify each finding."
    ),
    (
        "Explain why the {database} replica lags under {medium} writes per second, distinguish at least four causes "
        "and describe how to falsify each."
    ),
    (
        "Set up and solve the differential equation of a tank of {medium} litres with inflow {small} and outflow "
        "{small}; discuss stability."
    ),
    (
        "Design the schema, indices and invariants of a double-entry ledger in {database} and prove that no "
        "interleaving of {small} transfers breaks the balance."
    ),
    (
        "Draft a legal memo on whether {person}'s chat messages form a binding contract in {country}; analyse offer, "
        "acceptance, intent and evidence."
    ),
    (
        "Work out the optimal strategy of this game by backward induction: {small} coins, two players, take one to "
        "{digit}; generalise and prove it."
    ),
]

BEFORE: list[str] = [
    "Hello!", "Hi there,", "Good morning.", "Sorry to bother you again.", "I hope you are well.",
    "One thing, please.",
    "I have been a customer for years and I like your team a lot.", "My colleague told me to write here.",
    "I am on the train, so my answers may be slow.", "It has been a long week and I am a little tired today.",
    "I looked at the website first, but there was so much on it that I gave up after some minutes.",
    "By the way, the weather here is lovely today and we are going to the lake later with the children.",
    "I have already talked to somebody on the phone, a very kind person, but the line was bad and we had to stop.",
]  # fmt: skip
AFTER: list[str] = [
    "Thanks!", "Thank you very much.", "Please answer soon.", "Best regards", "That would help me a lot.", "Cheers",
    "No hurry, tomorrow is fine too.", "I am looking forward to your answer.",
    "Have a nice day and greetings to the team.",
    "If anything is missing, just tell me and I will send it to you when I am back at home this evening.",
]  # fmt: skip

SLOT = re.compile(r"\{([a-z]+)\}")
PRIMES = (2, 3, 5, 7, 11, 13, 17, 19, 23)
HELD_OUT_EVERY = 4


@dataclass(frozen=True, slots=True)
class Prompt:
    """`template` is its place in EASY or HARD: held-out data are whole templates, not only other slot values."""

    text: str
    label: Label
    template: int

    @property
    def held_out(self) -> bool:
        return self.template % HELD_OUT_EVERY == HELD_OUT_EVERY - 1


def make_prompt(rng: random.Random, label: Label, audience: Audience, *, template: int | None = None,
                small_talk: bool = True) -> Prompt:  # fmt: skip
    """One prompt. The same `rng` state gives the same prompt."""
    templates = EASY if label == "easy" else HARD
    index = rng.randrange(len(templates)) if template is None else template
    text = SLOT.sub(lambda match: _fill(match[1], rng, audience), templates[index])
    if small_talk:
        before = rng.sample(BEFORE, rng.choice((0, 0, 0, 1, 1, 2, 4)))
        after = rng.sample(AFTER, rng.choice((0, 0, 0, 1, 1, 2, 3)))
        text = " ".join((*before, text, *after))
    return Prompt(text, label, index)


def _fill(slot: str, rng: random.Random, audience: Audience) -> str:
    part = AUDIENCES.index(audience)
    if slot == "order":
        return str(NUMBER_BASE[audience] + rng.randrange(30_000))
    if slot == "small":
        return str(10 + 3 * rng.randrange(30) + part)
    if slot == "medium":
        return str(1_000 + 3 * rng.randrange(3_000) + part)
    if slot == "digit":
        return str((2, 3, 4, 5, 6, 7, 8, 9, 10)[3 * rng.randrange(3) + part])
    if slot == "prime":
        return str(PRIMES[3 * rng.randrange(3) + part])
    if slot == "square":
        return str((4, 9, 16, 25, 36, 49, 64, 81, 100)[3 * rng.randrange(3) + part])
    return rng.choice(SLOTS[slot][part::3])


def make_prompts(seed: int, count: int, audience: Audience) -> list[Prompt]:
    """`count` prompts, half of them easy, in a seeded order."""
    rng = random.Random(seed)
    return [make_prompt(rng, "easy" if i % 2 == 0 else "hard", audience) for i in range(count)]
