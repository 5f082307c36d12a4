"""What a bench measures: candidates, baseline, turns and processes."""
