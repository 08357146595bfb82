"""How soon a task starts on an idle queue, and its result is back."""

from stage import Server, apart, floor, ready


def latency(figures, sizes):
    def note(lines, who):
        for line in lines:
            for quantile in ("p50_us", "p99_us"):
                figures.note(f"{line['name'].replace('_', ' ')}, {quantile[:3]} (µs)", who, line[quantile])

    for _ in range(sizes.few):
        server = Server()
        note(floor("wake", "--port", server.port, "--count", sizes.latency), "floor")
        server.close()
        for kind in sizes.kinds():
            server = Server()
            worker = apart(kind, "q", server)
            try:
                ready(worker)
                lines = floor("latency", "--port", server.port, "--queue", "q", "--task", "bench.stamp", "--count", sizes.latency)
                note(lines, kind)
            finally:
                worker.stop()
                server.close()
