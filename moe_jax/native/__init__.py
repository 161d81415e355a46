"""C++ code for CPUs, called by XLA: grouped products and counting sort. Installation builds it."""
