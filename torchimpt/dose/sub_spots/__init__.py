"""Sub-spots: a spot's protons on a lattice of rays, each with the WEPL of its own path."""
