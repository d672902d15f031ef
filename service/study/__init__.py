"""Studies: the search of many samples, its controls, and an honest report. Never sees HTTP."""
