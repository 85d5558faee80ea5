"""Runners: where shards are computed. Every runner calls `worker.run_shards` and nothing else."""
