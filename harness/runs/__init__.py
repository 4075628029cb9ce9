"""The parent's side of a run: processes, claims, queues, executors, what is settled. No torch."""
