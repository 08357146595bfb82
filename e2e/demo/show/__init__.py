"""The demo, and the test that it is: everything real, shown while it happens, counted at the end.

`stage` sets up, `producer` is the Celery program, `history` follows the workers'
own logs, `view` and `screen` show, `verdict` counts. `kube` is a small client.
"""
