//! The worker as a process, on real Redis, with real Celery on the other side.

mod canvas;
mod celery_beside;
mod celery_interop;
mod control;
mod drain;
mod flower;
mod malformed;
mod neighbours;
mod outage;
mod outcomes;
mod queues;
mod rates;
mod results;
mod serializers;
mod support;
