"""Train signal models and judge them: labels, time split, metrics, baselines, model cards.

Everything here reads event columns and model files; nothing here trades.
"""
