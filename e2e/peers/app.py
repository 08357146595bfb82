"""The Celery application of all peers, configured by the environment."""

import json
import os

from celery import Celery

app = Celery("peers", broker=os.environ["UMBEL_PEER_BROKER"], backend=os.environ["UMBEL_PEER_RESULTS"])
app.conf.update(
    broker_connection_retry_on_startup=True,
    worker_hijack_root_logger=False,
    **json.loads(os.environ.get("UMBEL_PEER_SETTINGS") or "{}"),
)
