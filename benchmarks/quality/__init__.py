"""How much of what misalignment costs is won back, in place, on held-out aligned truth.

Gap recovered = (metric - plain) / (oracle - plain). A *task* is data, a network and a metric; a *cell* is a kind of
misalignment with the bounds that tfalign is given; an *arm* is a way to train. To add one, add one short function to
`tasks.py`, `cells.py` or `arms.py`.
"""

LOSS_VERSION = 5
