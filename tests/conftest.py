"""What all tests share."""

import hypothesis

# No test is timed: a busy machine is slow and not wrong.
hypothesis.settings.register_profile("pathlens", deadline=None)
hypothesis.settings.load_profile("pathlens")
