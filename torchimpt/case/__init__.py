"""The case file: its text, its values, its sections."""

from torchimpt.case.case import Case, load_case

__all__ = ["Case", "load_case"]
