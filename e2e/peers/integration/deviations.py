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
    "test_task_received_has_access_to_stamps": IN_PROCESS,
    "test_linking_stamped_sig": IN_PROCESS,
    "test_err_linking_stamped_sig": IN_PROCESS,
    "test_stats": IN_PROCESS + " (its process id)",
    "test_hello_stamps_received_revoked_ids_locally": IN_PROCESS,
    "test_report": "asks for the words `software -> celery`; ours says what it is",
    "test_trace_log_arguments": IN_PROCESS,
    "test_signal_bound_method_receivers": IN_PROCESS,
}

# Tests that apply and fail.
EXPECTED_FAILURES = {
    "test_active": "expects early acknowledgement, which is Celery's default; here a message is kept until its task has ended",
    "test_query_task": "likewise",
    "test_conf": "asks for settings that are a Python program's: colours of its log, modules to import",
    "test_request_time_limits_none_when_not_configured": "every run of ours has a hard limit, an hour unless told otherwise, and shows it",
}

# Tests that Celery's own worker fails, marked so in the suite, and ours passes.
PASSED_HERE = {
    "test_error_propagates_from_chord": "what follows a failed step of a chain fails with it, groups as well",
}
