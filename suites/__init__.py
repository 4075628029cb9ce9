"""Suites, base models and named method configurations, as TOML files."""

if __name__ != "harness.suites":
    raise ImportError("this folder is the package 'harness.suites': install the project and import it by that name")
