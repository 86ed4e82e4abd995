"""How weights and positions are found: settings, variables, stages, schemes."""
