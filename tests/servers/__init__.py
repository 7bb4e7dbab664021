"""The servers that the demo, the benchmark and the tests run on."""
