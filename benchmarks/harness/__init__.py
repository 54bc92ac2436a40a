"""What the rows share: results, a process of one's own, the C++ benchmarks, the floors in C."""
