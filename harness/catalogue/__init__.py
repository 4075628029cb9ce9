"""What names stand for: base models, data sets, devices, labels; the packaged ones and the user's own."""
