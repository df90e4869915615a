"""Inputs that somebody spoiled, by accident or on purpose, through the command lines.

A case is a command, its flags, and something spoiled in its folder. However it is spoiled, the command says what is
wrong in one line and fails; it writes nothing outside, leaves nothing half-written, runs no code of others, and takes
neither much time nor much memory. `place` runs and judges a case, `good` makes what is not spoiled; the others spoil.
"""
