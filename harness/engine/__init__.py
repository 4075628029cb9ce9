"""Everything that runs on tensors: loading, data, seeding, training, memory, block scores, runner, launch."""
