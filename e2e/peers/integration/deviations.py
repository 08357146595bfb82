"""Celery's integration tests that our worker does not pass, and why."""

IN_PROCESS = "looks into the process of Celery's worker: its signals, its logs or its state"

# Tests, or classes of them, that say nothing about another worker than Celery's.
NOT_APPLICABLE = {
}

# Tests that apply and fail.
EXPECTED_FAILURES = {
}
