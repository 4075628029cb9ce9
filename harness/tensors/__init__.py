"""What training, evaluation, planning, calibration and methods share of tensors; imports contracts alone."""
