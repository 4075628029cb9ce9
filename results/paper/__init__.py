"""Published numbers, as CSV files: each with its source, and where ours is to be found or why there is none."""

if __name__ != "harness.published":
    raise ImportError("this folder is the package 'harness.published': install the project and import it by that name")
