"""Every applicable check on a subject as one run, and what the report shows beside the verdicts."""
