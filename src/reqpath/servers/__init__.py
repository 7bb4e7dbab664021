"""Real servers on private ports, for demo, benchmark and tests: a topology is data, then runs."""
