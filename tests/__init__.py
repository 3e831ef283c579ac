"""The tests: a package, so that benchmarks can take the injectors of `tests.faults` to every network."""
