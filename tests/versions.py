"""What older versions of diffusers lack that cotrunk supports: `make oldest` runs tests with the oldest."""

import diffusers
from packaging.version import Version

IS_OLD = Version(diffusers.__version__) < Version("0.42")
