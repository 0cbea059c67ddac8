"""How well does a language model do? A small suite of our own, run here, judged by programs.

``tasks`` reads the questions, ``run`` asks them and stores every raw answer, ``judge`` decides on
one answer, ``score`` counts from what was stored and nothing else.
"""
