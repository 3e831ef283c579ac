"""Numbers in, numbers out: error budgets, intervals, sequential tests, tests of normal draws."""
