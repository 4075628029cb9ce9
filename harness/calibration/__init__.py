"""What a device can do, and whether predictions hold there: the parts of ``harness calibrate``."""
