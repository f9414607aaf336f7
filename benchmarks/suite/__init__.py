"""The benchmarks: one module each, with ``QUESTION``, ``cases(scale)`` and ``measure(lab, case)``."""
