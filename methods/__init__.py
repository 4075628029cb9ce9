"""The fine-tuning methods, one a file; what they share starts with an underscore."""

if __name__ != "harness.methods":
    raise ImportError("this folder is the package 'harness.methods': install the project and import it by that name")
