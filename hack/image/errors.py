"""What hack/image raises on purpose: everything is an ImageError, and its message says what to do."""


class ImageError(Exception):
    """An image cannot be built here."""
