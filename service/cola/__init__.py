"""Which chain is good for this sample: search and rewards. Never sees HTTP."""
