"""Settings that all tests share."""

import hypothesis

# The same examples everywhere and no data base in the repository; machines differ in speed.
hypothesis.settings.register_profile(
    "gaunt_plugin",
    derandomize=True,
    database=None,
    deadline=None,
    max_examples=20,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("gaunt_plugin")
