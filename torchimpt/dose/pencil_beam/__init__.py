"""Own-ray pencil beams: formula, tables, kernels, matrix entries."""
