"""The benchmark: ratios to plain Envoy and to LiteLLM in one run, and how long reverts take. `python -m hack.bench`."""
