"""Simulated model providers, users and load: for tests, benchmarks and the demo only."""
