"""The way of a row, a stage a file: packaged, parts, wording, files, rows, drawn, examples, batches, showing."""
