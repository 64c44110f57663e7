"""Many runs: grids of configs, matched in cost, in one table."""
