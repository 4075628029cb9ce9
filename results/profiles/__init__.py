"""Device profiles that come with the project: what ``harness calibrate`` wrote on a device, found by its name."""

if __name__ != "harness.profiles":
    raise ImportError("this folder is the package 'harness.profiles': install the project and import it by that name")
