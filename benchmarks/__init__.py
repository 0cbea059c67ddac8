"""Benchmarks against strong peers; see docs/benchmarks.md."""
