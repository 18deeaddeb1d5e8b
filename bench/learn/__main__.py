"""Train small models from nothing, each to use one memory, and examine them beside controls."""

from __future__ import annotations

import argparse
import multiprocessing
import os
import time
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from pathlib import Path

from rich.console import Console

from bench.learn.course import Course, with_controls
from bench.learn.courses import COURSES
from bench.learn.examine import Row, take, use_one_thread
from bench.learn.report import screen, with_table, write_docs
from bench.learn.results import Results

RESULTS = Path(__file__).parent.parent / "results"


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(prog="python -m bench.learn", description="Teach small models to use a memory.")
    parser.add_argument("--only", nargs="*", default=[], help="words that a course's name has, such as: passkey infini")
    parser.add_argument("--again", action="store_true", help="take courses again that have results")
    parser.add_argument("--workers", type=int, default=2, help="processes, one thread each")
    parser.add_argument("--report", action="store_true", help="take no course, only write the tables")
    parser.add_argument("--out", type=Path, default=RESULTS / "learn.json")
    options = parser.parse_args()
    console, courses = Console(), with_controls(COURSES)
    results = Results(options.out, courses)
    if not options.report:
        chosen = [one for one in courses if all(word in one.name.split() for word in options.only)]
        due = [one for one in chosen if options.again or not results.has(one)]
        run(due, results, options.workers, console)
    console.print(screen(results.rows))
    if options.out == RESULTS / "learn.json":
        write_docs(with_table(results.rows))


def run(courses: list[Course], results: Results, workers: int, console: Console) -> None:
    """Take the courses, some at a time; what is done is written at once."""
    os.environ["OMP_NUM_THREADS"] = "1"  # read by the processes when they load torch
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context, initializer=use_one_thread) as pool:
        running: dict[Future[list[Row]], Course] = {pool.submit(take, course): course for course in courses}
        for future in as_completed(running):
            course, rows = running[future], future.result()
            results.add(course, rows)
            found = ", ".join(f"{row['length']}: {row['accuracy']:.2f}" for row in rows)
            console.print(f"{time.strftime('%H:%M:%S')} {course.name}: {found} ({rows[0]['steps']} steps)")


if __name__ == "__main__":
    main()
