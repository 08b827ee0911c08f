"""The main job on real input: count the names in every file of Python's standard library, through a queue.

A worker process is killed and connections are broken while it runs; the totals must match a serial run all
the same. The stages are in `stages`, the tables in `tables`, what counts as right in `compare`.
"""
