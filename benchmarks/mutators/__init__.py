"""How `benchmarks.mutants` breaks a network, or the loss that trains it, by topic; a mutator changes a `case.Case`."""
