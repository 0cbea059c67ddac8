"""Market data in: every source becomes rows of a Nautilus Parquet catalog with a manifest.

``catalog.open_source`` is the door; one reader each for recordings, klines, the bulk archive and
the synthetic market; ``download`` fetches the archive.
"""
