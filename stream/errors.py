"""The one base of what is wrong with a deployment, as opposed to bad data and to bugs."""


class StreamError(Exception):
    """A deployment that cannot be served: one sentence for the operator, exit code 2."""
