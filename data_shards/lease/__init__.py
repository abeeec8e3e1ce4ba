"""Who owns a name on a storage: one lease for runs, packed data sets, sweeps and whatever else writes under a name."""
