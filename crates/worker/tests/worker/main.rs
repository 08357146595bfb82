//! The worker as a process, on real Redis, with real Celery on the other side.

mod canvas;
mod celery_beside;
mod celery_interop;
mod control;
mod cut;
mod drain;
mod queues;
mod rates;
mod kill;
mod malformed;
mod outage;
mod poison;
mod support;
mod zombie;
