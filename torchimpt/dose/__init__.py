"""Dose: the pair kernel, its derivatives, the matrix-free operator and the stored influence matrices."""
