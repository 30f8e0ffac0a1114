"""Models that are asked about rows: likelihoods, tags, grades, style."""
