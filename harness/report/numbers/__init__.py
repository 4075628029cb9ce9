"""What machines read: report.json and CSV."""
