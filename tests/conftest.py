"""pytest's own test bench for plugins; pytest allows this line at the root of the tests only."""

pytest_plugins = ["pytester"]
