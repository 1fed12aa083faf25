"""Made-up inputs for everything that reads what others control.

`targets` say what is read, and what must hold whatever it is; `engine` makes inputs of seeds, and
keeps those that reach something new, as `instrument` tells. ``make fuzz`` runs them for a while
(``python -m tests.fuzz --help``), and `test_targets` a few hundred inputs of each, the same ones
on every run.

An input that broke something goes to ``corpus/TARGET/`` under a name that says what it does: it
is run each time, here and there.
"""
