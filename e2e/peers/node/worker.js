// A celery-node worker with the tasks that it can have in common with the others: it knows no keyword arguments, it
// gets them as the last positional one.
"use strict";

const celery = require("celery-node");

const worker = celery.createWorker(process.env.UMBEL_PEER_BROKER, process.env.UMBEL_PEER_RESULTS);
worker.register("umbel.echo", (...all) => ({ args: all.slice(0, -1), kwargs: all[all.length - 1] }));
worker.start();
