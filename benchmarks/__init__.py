"""Speed, memory and accuracy scripts. Run one with `python -m benchmarks.NAME`."""
