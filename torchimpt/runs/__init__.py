"""Runs: the commands' work, their folders and checkpoints. The only room that writes a run."""
