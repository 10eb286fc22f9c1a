"""Networks built to be certified falsely: the nearest wrong input is known before any bound runs.

A case is a tiny network of any layers, at any scale from denormal to 1e38, whose last layer is put
between what the body computes at a clean input and at one of its neighbours (``growth``,
``networks``). The nearest wrong float32 input found (``search``) is then held against every bound,
in every arithmetic (``questions``): whoever proves that distance lies.
"""
