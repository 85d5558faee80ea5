"""Runners: where units of shards are computed. Every runner calls `worker.run_units` and nothing else."""
