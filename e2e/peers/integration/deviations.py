"""Celery's integration tests that our worker does not pass, and why."""

IN_PROCESS = "looks into the process of Celery's worker: its signals, its logs or its state"

# Tests, or classes of them, that say nothing about another worker than Celery's.
NOT_APPLICABLE = {
    "test_send_task_without_ignore_result_uses_task_ignore_result": IN_PROCESS,
    "test_send_task_without_ignore_result_stores_result": IN_PROCESS,
    "test_retry_preserves_ignore_result_false": IN_PROCESS,
    "test_retry_preserves_ignore_result_true": IN_PROCESS,
    "test_replaced_task_nesting_level_0": IN_PROCESS,
    "test_replaced_task_nesting_level_1": IN_PROCESS,
    "test_replaced_task_nesting_chain": IN_PROCESS,
    "test_revoked_by_headers_simple_canvas": IN_PROCESS + " (it takes a revoke back there)",
    "test_trace_log_arguments": IN_PROCESS,
    "test_signal_bound_method_receivers": IN_PROCESS,
}

# Tests that apply and fail.
EXPECTED_FAILURES = {
    "test_request_time_limits_none_when_not_configured": "every run of ours has a hard limit, an hour unless told otherwise, and shows it",
    "new-style-args": "new-style errbacks are Python functions called inside the worker; ours sends errbacks as tasks",
}
