// A celery-node client driven by lines of JSON: a request on standard input, its answer on standard output.
"use strict";

const readline = require("readline");
const celery = require("celery-node");

// Its clients know one broker, one result store and one queue each.
const clients = new Map();
const results = new Map();

function client({ broker, results: backend, settings, protocol }) {
  const key = JSON.stringify([broker, backend, settings, protocol]);
  if (!clients.has(key)) {
    const made = celery.createClient(broker, backend);
    made.conf.TASK_PROTOCOL = protocol;
    // It has no prefixes, but the options of its Redis client, whose they are.
    const prefix = (options) => (settings[options] || {}).global_keyprefix || "";
    const ofResults = prefix("result_backend_transport_options");
    made.conf.CELERY_BROKER_OPTIONS = { keyPrefix: prefix("broker_transport_options") };
    made.conf.CELERY_BACKEND_OPTIONS = { keyPrefix: ofResults.replace(/([^:_.-])$/, "$1_") };
    clients.set(key, made);
  }
  return clients.get(key);
}

// Text that is equal for equal values.
function text(value) {
  const sorted = (_, inner) =>
    inner && typeof inner === "object" && !Array.isArray(inner)
      ? Object.fromEntries(Object.entries(inner).sort(([a], [b]) => (a < b ? -1 : 1)))
      : inner;
  return JSON.stringify(value, sorted);
}

const operations = {
  ready: async () => true,
  send: async (request) => {
    const result = client(request).createTask(request.task).applyAsync(request.args, request.kwargs);
    results.set(result.taskId, result);
    return result.taskId;
  },
  get: async ({ id, timeout }) => text(await results.get(id).get(timeout * 1000, 20)),
};

async function answer(request) {
  try {
    return { ok: await operations[request.op](request) };
  } catch (err) {
    // celery-node puts the fields of the stored error on an Error whose message is the state.
    const message = [].concat(err.exc_message || []).join(" ");
    return {
      raised: { type: err.exc_type || err.name, module: err.exc_module || "", message: message || err.message, traceback: null },
    };
  }
}

(async () => {
  for await (const line of readline.createInterface({ input: process.stdin })) {
    console.log(JSON.stringify(await answer(JSON.parse(line))));
  }
  process.exit(0);
})();
