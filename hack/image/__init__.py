"""The project's container images without a container engine: built from Debian's packages and the locked wheels.

`python -m hack.image build`; the Dockerfile beside this is the other builder, and tests keep the two equal.
"""
