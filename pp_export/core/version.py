"""The version, in one place: the package, its packaging and the fingerprint of a plan take it from here."""

VERSION = "0.1.0"
