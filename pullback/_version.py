"""The version: that of the git tag the package was built from, as its metadata have it."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("pullback")
except PackageNotFoundError:  # the folder alone on the path
    __version__ = "0+not.installed"
