"""The servers QBTC stands on, and its own, on one machine without containers: up, down, status."""
