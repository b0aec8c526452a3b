"""Everything a user sees of a run: metrics, samples, the live view, the report, the log."""
