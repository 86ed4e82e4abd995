"""What other programs have, as ours: pyRadPlan's objects, and cases of the test set TROTS."""
