"""The Celery application of all peers, configured by the environment. Works with Celery from 5.2 on."""

import json
import os

from celery import Celery


def application(broker, results, settings):
    app = Celery("peers", broker=broker, backend=results)
    app.conf.update(broker_connection_retry_on_startup=True, worker_hijack_root_logger=False, **settings)
    if app.conf.security_key:
        # What else may be read is a matter of accept_content, not of the serializers of the whole process.
        app.setup_security(allowed_serializers=["json", "msgpack", "yaml"])
    return app


app = application(
    os.environ["UMBEL_PEER_BROKER"],
    os.environ["UMBEL_PEER_RESULTS"],
    json.loads(os.environ.get("UMBEL_PEER_SETTINGS") or "{}"),
)
