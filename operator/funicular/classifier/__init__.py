"""The classifier: the contract between Envoy and whatever predicts difficulty, and a reference that keeps it.

`openapi.yaml` is the contract; `conformance` checks any server against it; `serve` is the reference server. Its model is
trained on made data (made_prompts.py): good for a first ramp, for demos and for benchmarks, and no substitute for a model
trained on the prompts of the endpoint it routes.
"""
