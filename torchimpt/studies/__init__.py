"""What experiments and benchmarks share: flags from a dataclass, and a bench that plans and judges many plans of one case."""
