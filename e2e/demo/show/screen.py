"""What is written where: steps, a block that redraws itself on a terminal, and one line every few seconds elsewhere."""

import contextlib
import os
import shutil
import sys
import time

LINE_EVERY = 3.0


class Screen:
    def __init__(self, stream=sys.stdout):
        self.stream = stream
        self.is_terminal = stream.isatty()
        self.has_colour = self.is_terminal and not os.environ.get("NO_COLOR")
        self.drawn = 0
        self.last_line = 0.0

    def paint(self, code, text):
        return f"\033[{code}m{text}\033[0m" if self.has_colour else text

    def good(self, text):
        return self.paint("32", text)

    def bad(self, text):
        return self.paint("31", text)

    def dim(self, text):
        return self.paint("2", text)

    def bold(self, text):
        return self.paint("1", text)

    def say(self, text=""):
        print(text, file=self.stream, flush=True)

    @contextlib.contextmanager
    def step(self, title):
        begin = time.monotonic()
        if self.is_terminal:
            self.stream.write(f"  … {title}")
            self.stream.flush()
        try:
            yield
        except BaseException:
            self.say(("\r" if self.is_terminal else "") + f"  {self.bad('✗')} {title}")
            raise
        self.say(("\r" if self.is_terminal else "") + f"  {self.good('✓')} {title} {self.dim(f'{time.monotonic() - begin:.1f} s')}")

    def live(self, block, line):
        """Shows the state: `block` in place of the last one, or `line` when it is time for the next."""
        if not self.is_terminal:
            if time.monotonic() - self.last_line >= LINE_EVERY:
                self.last_line = time.monotonic()
                self.say(line)
            return
        width = shutil.get_terminal_size().columns
        # One write, so that nothing flickers; cut lines, since a wrapped one would be counted as one.
        up = f"\033[{self.drawn}A" if self.drawn else ""
        self.stream.write(up + "".join(f"\033[2K{cut(row, width)}\n" for row in block) + "\033[J")
        self.stream.flush()
        self.drawn = len(block)

    def settle(self):
        """Leaves the block where it is and goes on below."""
        self.drawn = 0


def cut(row, width):
    """A row of at most `width` visible characters; escape sequences do not count."""
    shown, out, index = 0, [], 0
    while index < len(row):
        if row[index] == "\033":
            end = row.index("m", index) + 1
            out.append(row[index:end])
            index = end
            continue
        if shown < width - 1:
            out.append(row[index])
            shown += 1
        index += 1
    return "".join(out)


def bar(part, whole, width):
    full = round(width * part / whole) if whole else 0
    return "█" * full + "░" * (width - full)


def spark(values, top):
    """A row of small columns, the newest at the right."""
    steps = " ▁▂▃▄▅▆▇█"
    return "".join(steps[-(-min(value, top) * 8 // top)] if top else " " for value in values)


def table(rows, indent="  "):
    """Rows with their columns aligned; the first row is the heading."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return [indent + "  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows]
