"""The main job on real input: count the names in every file of Python's standard library, through a queue.

Worker processes are killed and connections broken while it runs; the totals must match a serial run all the same. The
steps are in `run`, what can go wrong on purpose in `processes`, what counts as right in `compare`.
"""
