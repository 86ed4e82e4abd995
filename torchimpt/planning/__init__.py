"""The workflows: from a case to a plan, its numbers and its files."""
