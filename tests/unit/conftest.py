"""What all unit tests have in common."""

from hypothesis import HealthCheck, settings

# How long an example takes is the machine's affair.
settings.register_profile(
    "unhurried", settings(), deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("unhurried")
