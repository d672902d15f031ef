"""Linear recurrences: stacks that read a sequence with a state of fixed size. One architecture a file."""
