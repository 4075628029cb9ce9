"""What a run does and who starts it: data, training, memory, block scores, runner, launch, executors."""
