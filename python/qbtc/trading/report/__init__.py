"""What people see of a run: ``page`` writes report.html, ``summary`` prints the tables.

Both read the run directory and nothing else (``rundir``), so a report can be made again at any
time. ``quality`` judges the signals, ``costs`` says where the money went, ``charts`` draws,
``wording`` says it in words.
"""
